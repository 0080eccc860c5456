"""Convolutions, pooling to a few rows and columns, convolutions again, as in Honeybee (a C-Abstractor)."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn

from vlmkit.contracts import PartConfig
from vlmkit.types import Features


class Config(PartConfig):
    """The defaults are those of Honeybee with 144 tokens."""

    edge: int = Field(12, ge=1, le=256, description="rows and columns that leave; 12 are 144 tokens")
    hidden: int = Field(1024, ge=8, description="channels of the convolutions")
    depth: int = Field(3, ge=1, le=64, description="blocks before the pooling, and as many after it")
    layers: int = Field(2, ge=1, le=16, description="linear layers at the end, to the decoder's width")


class CAbstractor(nn.Module):
    """width -> hidden -> out; the grid stays a grid, so packers that need one go on working."""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.before = stage(config.depth, width, config.hidden)
        self.pool = nn.AdaptiveAvgPool2d(config.edge)
        self.after = stage(config.depth, config.hidden, config.hidden)
        layers: list[nn.Module] = [nn.Linear(config.hidden, out)]
        for _ in range(config.layers - 1):
            layers += [nn.SiLU(), nn.Linear(out, out)]
        self.out = nn.Sequential(*layers)

    def forward(self, features: Features) -> Features:
        """[tiles, prefix + rows * cols, width] -> [tiles, edge * edge, out]; prefix tokens have no place"""
        features = Features.of_map(self.after(self.pool(self.before(features.map))))
        return features._replace(tokens=self.out(features.tokens))


def build(config: Config, *, width: int, out: int) -> CAbstractor:
    return CAbstractor(config, width, out)


EXAMPLE = {"edge": 2, "hidden": 16, "depth": 1}
