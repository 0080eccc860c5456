"""Neighbouring patches joined on the channel axis, then linear layers: fewer, wider tokens."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from vlmkit.contracts import PartConfig
from vlmkit.errors import ShapeError
from vlmkit.types import Features

from . import mlp


class Config(PartConfig):
    """How many patches become one token."""

    factor: int = Field(2, ge=2, le=32, description="patches along each edge that become one token")
    depth: int = Field(2, ge=1, le=16, description="linear layers")
    act: Literal["gelu", "relu", "silu"] = Field("gelu", description="between two layers; gelu is the one with erf")


class PixelShuffle(nn.Module):
    """width * factor ** 2 -> out -> ... -> out"""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.mlp = mlp.Mlp(mlp.Config(depth=config.depth, act=config.act), width * config.factor**2, out)

    def forward(self, features: Features) -> Features:
        """[tiles, rows * cols, width] -> [tiles, rows * cols / factor ** 2, out]; prefix tokens are dropped"""
        factor, rows, cols = self.factor, features.rows, features.cols
        if rows % factor or cols % factor:
            raise ShapeError(f"{rows} x {cols} patches do not divide by {factor}", where="projector.factor",
                             hint=_divisors(rows, cols))
        near = F.pixel_unshuffle(features.map, factor)  # channels in the order of the first patch's, then of its place
        joined: Features = self.mlp(Features.of_map(near))
        return joined


def _divisors(rows: int, cols: int) -> str:
    fitting = [str(n) for n in range(2, min(rows, cols) + 1) if not rows % n and not cols % n]
    return f"these do: {', '.join(fitting)}" if fitting else "choose a projector that keeps every token"


def build(config: Config, *, width: int, out: int) -> PixelShuffle:
    return PixelShuffle(config, width, out)


EXAMPLE = {"factor": 2}
