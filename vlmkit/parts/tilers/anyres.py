"""The whole picture squashed to one tile, and the tiles of the grid that suits its shape best."""

from __future__ import annotations

import math
from typing import Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from vlmkit.contracts import PartConfig
from vlmkit.types import Layout

from .resize import ABOUT, Resample, planes, resize
from .square import Fit, Square

Grid = tuple[int, int]
MOST = 64  # tiles along an edge


class Config(PartConfig):
    """Which grids there are; either all of them, or the largest of a whole series."""

    grids: tuple[Grid, ...] | None = Field(None, min_length=1, description="[[rows, cols], ...]; of equals the first")
    largest: Grid | None = Field(None, description="[rows, cols]: every grid from 1 x 1 to this one")
    together: Literal["square", "tiles"] = Field(
        "tiles", description="pictures that share a conversation: one square tile each, or tiles as ever")
    fit: Fit = Field("pad", description="how such a square tile is made")
    resample: Resample = Field("pillow", description=ABOUT)

    @model_validator(mode="after")
    def _one_of_both(self) -> Config:
        if (self.grids is None) == (self.largest is None):
            raise ValueError("expected either `grids` or `largest`")
        if any(not 1 <= n <= MOST for grid in (self.largest, *(self.grids or ())) for n in grid or ()):
            raise ValueError(f"rows and columns are 1 to {MOST}")
        return self

    @property
    def choices(self) -> tuple[Grid, ...]:
        if self.grids is not None or self.largest is None:
            return self.grids or ()
        rows, cols = self.largest
        return tuple((r, c) for r in range(1, rows + 1) for c in range(1, cols + 1))


class AnyRes:
    """LLaVA-NeXT, LLaVA-OneVision."""

    def __init__(self, config: Config, side: int, fill: tuple[float, float, float]) -> None:
        self.grids, self.side, self.together, self.resample = config.choices, side, config.together, config.resample
        self.square = Square(config.fit, side, fill, config.resample)

    def plan(self, height: int, width: int, alone: bool) -> Layout:
        if not alone and self.together == "square":
            return self.square.plan(height, width, alone)
        return Layout("image", height, width, *choose(self.grids, self.side, height, width))

    def cut(self, picture: Image.Image, layout: Layout) -> Tensor:
        """An RGB picture -> uint8 [1 + rows * cols, 3, side, side]"""
        if not layout.rows:
            return self.square.cut(picture, layout)
        side, rows, cols = self.side, layout.rows, layout.cols
        high, wide = rows * side, cols * side
        height, width = fitted(picture.height, picture.width, high, wide)
        whole, inner = resize(picture, [(side, side), (height, width)], self.resample)
        canvas = torch.zeros(3, high, wide, dtype=torch.uint8)  # an odd pixel that is left over goes below or right
        top, left = (high - height) // 2, (wide - width) // 2
        canvas[:, top : top + height, left : left + width] = planes(inner)
        tiles = torch.empty(1 + rows * cols, 3, side, side, dtype=torch.uint8)
        tiles[0] = planes(whole)
        grid = tiles[1:].view(rows, cols, 3, side, side)
        grid.copy_(canvas.view(3, rows, side, cols, side).permute(1, 3, 0, 2, 4))
        return tiles


def choose(grids: tuple[Grid, ...], side: int, height: int, width: int) -> Grid:
    """The grid that keeps most pixels of the picture, and of those the one that wastes the fewest of its own."""
    def worth(grid: Grid) -> tuple[int, int]:
        high, wide = grid[0] * side, grid[1] * side
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - high * wide
    return max(grids, key=worth)  # the first of equals


def fitted(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """The largest size of the same shape inside high x wide, rounded up."""
    if wide / width < high / height:
        return min(math.ceil(height * (wide / width)), high), wide
    return high, min(math.ceil(width * (high / height)), wide)


def build(config: Config, *, side: int, fill: tuple[float, float, float]) -> AnyRes:
    return AnyRes(config, side, fill)


EXAMPLE = {"largest": [2, 2]}
