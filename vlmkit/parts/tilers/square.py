"""One square tile: padded, cropped or squashed."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import Field
from torch import Tensor

from vlmkit.contracts import PartConfig
from vlmkit.types import Layout

from .resize import ABOUT, Resample, planes, resize

Fit = Literal["pad", "crop", "squash"]


class Config(PartConfig):
    """How a picture becomes a square."""

    fit: Fit = Field("pad", description="pad to a square with the tower's mean colour, crop the longer edge, or squash")
    resample: Resample = Field("pillow", description=ABOUT)


class Square:
    """The whole picture as one tile."""

    def __init__(self, fit: Fit, side: int, fill: tuple[float, float, float], resample: Resample = "pillow") -> None:
        self.fit, self.side, self.fill, self.resample = fit, side, fill, resample

    def plan(self, height: int, width: int, alone: bool) -> Layout:
        return Layout("image", height, width)

    def cut(self, picture: Image.Image, layout: Layout) -> Tensor:
        """An RGB picture -> uint8 [1, 3, side, side]"""
        side, (width, height) = self.side, picture.size
        high, wide, edge = side, side, 0
        if self.fit == "crop":
            long = int(side * max(width, height) / min(width, height))
            high, wide = (long, side) if width <= height else (side, long)
        elif self.fit == "pad":
            edge = max(width, height)
        pixels = resize(picture, [(high, wide)], self.resample, edge, colour(self.fill))[0]
        top, left = (high - side) // 2, (wide - side) // 2
        return planes(pixels[top : top + side, left : left + side])[None].contiguous()


def colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The mean as a colour, truncated as the released models do: (122, 116, 104) for CLIP."""
    red, green, blue = (int(part * 255) for part in mean)
    return red, green, blue


def build(config: Config, *, side: int, fill: tuple[float, float, float]) -> Square:
    return Square(config.fit, side, fill, config.resample)


EXAMPLE = {"fit": "pad"}
