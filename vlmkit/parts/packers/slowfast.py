"""Every n-th frame dense, the others pooled further: many frames, few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlmkit.contracts import PartConfig, Projector
from vlmkit.types import Features, Layout

from .frames import pool, separate


class Config(PartConfig):
    """The two speeds. Defaults as LLaVA-Video's `add_faster_video`."""

    every: int = Field(10, ge=1, description="frames 0, every, 2 * every, ... are the slow, dense ones")
    pool: Literal["average", "max", "bilinear"] = Field("bilinear", description="how patches become one")
    slow: int = Field(2, ge=1, description="stride of the slow frames")
    fast: int = Field(4, ge=1, description="stride of the others")
    newline: Literal["none", "row"] = Field("row", description="the newline vector: nowhere, or behind each row")
    faster: bool = Field(True, description="a learned vector behind each frame, whichever its speed")


class SlowFast(nn.Module):
    """Pools behind the projector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.separators = ("newline",) * (config.newline == "row") + ("faster",) * config.faster

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[frames of all, tokens, width] -> one [tokens, out] for each clip; prefix tokens are dropped"""
        features = project(features)
        given = {name: separators[name].to(features.tokens) for name in self.separators}
        tiles = torch.split(features.tokens, [layout.tiles for layout in layouts])
        return [self.pack(features._replace(tokens=own), given) for own in tiles]

    def pack(self, features: Features, given: Mapping[str, Tensor]) -> Tensor:
        """One clip.   [frames, tokens, out] -> [tokens, out]"""
        slow = list(range(0, len(features.tokens), self.config.every))
        fast = [i for i in range(len(features.tokens)) if i % self.config.every]
        frames = dict(zip(slow, self.shrink(features, slow, self.config.slow, given), strict=True))
        if fast:
            frames.update(zip(fast, self.shrink(features, fast, self.config.fast, given), strict=True))
        return torch.cat([frames[i] for i in range(len(frames))])

    def shrink(self, features: Features, chosen: list[int], stride: int, given: Mapping[str, Tensor]) -> Tensor:
        """Some frames at one speed, with what stands behind them.   [frames, tokens, out] -> [chosen, fewer, out]"""
        small = pool(features._replace(tokens=features.tokens[chosen]), self.config.pool, stride)
        tokens = separate(small, given.get("newline"), self.config.newline)
        if not self.config.faster:
            return tokens
        return torch.cat([tokens, given["faster"].expand(len(chosen), 1, -1)], dim=1)


def build(config: Config, *, width: int, out: int) -> SlowFast:
    return SlowFast(config)


EXAMPLE = {"every": 2}
