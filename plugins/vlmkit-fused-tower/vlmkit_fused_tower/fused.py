"""Two or more towers on the same pixels, their tokens joined by channel or one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.contracts import PartConfig, PartOf
from vlmkit.errors import ShapeError
from vlmkit.types import Features


class Config(PartConfig):
    """Which towers, and how they are joined."""

    towers: tuple[Annotated[PartConfig, PartOf("tower")], ...] = Field(
        min_length=2, max_length=8, description="sections like `tower` itself; the first gives grid and fill colour")
    join: Literal["channel", "token"] = Field(
        "channel", description="channel: one token of all towers at each place; token: one's tokens behind the other's")


class Fused(nn.Module):
    """Each tower gets the pixels at its own side and normalises them for itself."""

    towers: Any  # a ModuleList of towers

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.towers = nn.ModuleList(tower.build() for tower in config.towers)
        self.join = config.join
        self.side = max(tower.side for tower in self.towers)
        self.mean, self.std = self.towers[0].mean, self.towers[0].std
        self.frames = math.lcm(*(getattr(tower, "frames", 1) for tower in self.towers))
        widths = [tower.width for tower in self.towers]
        if config.join == "token" and len(set(widths)) > 1:
            raise ShapeError(f"tokens of widths {widths} cannot follow each other", where="tower.join",
                             hint="join by channel, or take towers of one width")
        self.width = sum(widths) if config.join == "channel" else widths[0]
        self.unused = sum(tower.unused for tower in self.towers)
        for tower in self.towers:
            tower.unused = 0  # it is told once

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [block for tower in self.towers for block in tower.blocks]

    def forward(self, pixels: Tensor) -> Features:
        """uint8 [tiles, 3, side, side] -> [tiles, rows * cols, sum of widths], or [tiles, tokens of all, width]"""
        seen = [tower(resized(pixels, tower.side)) for tower in self.towers]
        if self.join == "token":
            return Features(torch.cat([one.tokens for one in seen], dim=1), 0, 0)
        first = seen[0]
        maps = [one.map if one[1:3] == first[1:3] else fitted(one.map, first.rows, first.cols) for one in seen]
        return Features.of_map(torch.cat(maps, dim=1))

    def materialize(self) -> None:
        """Compute what no checkpoint holds, in each tower that has such."""
        for tower in self.towers:
            compute = getattr(tower, "materialize", None)
            if compute is not None:
                compute()


def resized(pixels: Tensor, side: int) -> Tensor:
    """uint8 [tiles, 3, any, any] -> uint8 [tiles, 3, side, side]"""
    if pixels.shape[-1] == side:
        return pixels
    smooth = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8)


def fitted(grid: Tensor, rows: int, cols: int) -> Tensor:
    """Another tower's map, on the first one's grid.   [tiles, width, any, any] -> [tiles, width, rows, cols]"""
    return F.interpolate(grid.float(), (rows, cols), mode="bilinear").to(grid.dtype)


def build(config: Config) -> Fused:
    return Fused(config)


_SMALL = {"img_size": 32, "depth": 2, "num_heads": 2}
EXAMPLE = {"towers": [
    {"use": "timm", "model": "vit_tiny_patch16_224", "options": {**_SMALL, "embed_dim": 16}},
    {"use": "timm", "model": "vit_tiny_patch16_224", "options": {**_SMALL, "embed_dim": 8, "img_size": 48}},
]}  # fmt: skip
