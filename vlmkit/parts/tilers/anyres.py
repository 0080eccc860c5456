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

from .square import Fit, Square, as_tensor

Grid = tuple[int, int]
MOST = 64  # tiles along an edge


class Config(PartConfig):
    """Which grids there are; either all of them, or the largest of a whole series."""

    grids: tuple[Grid, ...] | None = Field(None, min_length=1, description="[[rows, cols], ...]; of equals the first")
    largest: Grid | None = Field(None, description="[rows, cols]: every grid from 1 x 1 to this one")
    together: Literal["square", "tiles"] = Field(
        "tiles", description="pictures that share a conversation: one square tile each, or tiles as ever")
    fit: Fit = Field("pad", description="how such a square tile is made")

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
        self.grids, self.side, self.together = config.choices, side, config.together
        self.square = Square(config.fit, side, fill)

    def plan(self, height: int, width: int, alone: bool) -> Layout:
        if not alone and self.together == "square":
            return self.square.plan(height, width, alone)
        return Layout("image", height, width, *choose(self.grids, self.side, height, width))

    def cut(self, picture: Image.Image, layout: Layout) -> Tensor:
        """An RGB picture -> uint8 [1 + rows * cols, 3, side, side]"""
        if not layout.rows:
            return self.square.cut(picture, layout)
        side, rows, cols = self.side, layout.rows, layout.cols
        whole = as_tensor(picture.resize((side, side), Image.Resampling.BICUBIC))
        tiles = as_tensor(center(picture, rows * side, cols * side)).view(3, rows, side, cols, side)
        return torch.cat([whole[None], tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)])


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


def center(picture: Image.Image, high: int, wide: int) -> Image.Image:
    """Resized without distortion, on a black canvas; an odd pixel that is left over goes below or to the right."""
    height, width = fitted(picture.height, picture.width, high, wide)
    canvas = Image.new("RGB", (wide, high))
    canvas.paste(picture.resize((width, height), Image.Resampling.BICUBIC), ((wide - width) // 2, (high - height) // 2))
    return canvas


def build(config: Config, *, side: int, fill: tuple[float, float, float]) -> AnyRes:
    return AnyRes(config, side, fill)


EXAMPLE = {"largest": [2, 2]}
