"""Linear layers with an activation between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from vlmkit.contracts import PartConfig
from vlmkit.types import Features

ACTS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}  # the gelu with erf


class Config(PartConfig):
    """How many layers, and what is between and before them."""

    depth: int = Field(2, ge=1, le=16, description="linear layers")
    act: Literal["gelu", "relu", "silu"] = Field("gelu", description="between two layers; gelu is the one with erf")
    bias: bool = Field(True, description="on every layer")
    norm: float | None = Field(None, gt=0, description="epsilon of a LayerNorm before the first layer; null: none")


class Mlp(nn.Module):
    """width -> out -> ... -> out"""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        self.norm = None if config.norm is None else nn.LayerNorm(width, eps=config.norm)
        layers: list[nn.Module] = [nn.Linear(width, out, bias=config.bias)]
        for _ in range(config.depth - 1):
            layers += [ACTS[config.act](), nn.Linear(out, out, bias=config.bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Features) -> Features:
        """[tiles, tokens, width] -> [tiles, tokens, out]"""
        x = features.tokens if self.norm is None else self.norm(features.tokens)
        return features._replace(tokens=self.layers(x))


def build(config: Config, *, width: int, out: int) -> Mlp:
    return Mlp(config, width, out)


EXAMPLE = {"depth": 2, "act": "gelu"}
