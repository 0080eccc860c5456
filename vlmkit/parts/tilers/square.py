"""One square tile: padded, cropped or squashed."""

from __future__ import annotations

from typing import Literal

import numpy
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from vlmkit.contracts import PartConfig
from vlmkit.types import Layout

Fit = Literal["pad", "crop", "squash"]


class Config(PartConfig):
    """How a picture becomes a square."""

    fit: Fit = Field("pad", description="pad to a square with the tower's mean colour, crop the longer edge, or squash")


class Square:
    """The whole picture as one tile."""

    def __init__(self, fit: Fit, side: int, fill: tuple[float, float, float]) -> None:
        self.fit, self.side, self.fill = fit, side, fill

    def plan(self, height: int, width: int, alone: bool) -> Layout:
        return Layout("image", height, width)

    def cut(self, picture: Image.Image, layout: Layout) -> Tensor:
        """An RGB picture -> uint8 [1, 3, side, side]"""
        return as_tensor(FITS[self.fit](picture, self.side, colour(self.fill)))[None]


def colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The mean as a colour, truncated as the released models do: (122, 116, 104) for CLIP."""
    red, green, blue = (int(part * 255) for part in mean)
    return red, green, blue


def pad(picture: Image.Image, side: int, fill: tuple[int, int, int]) -> Image.Image:
    """Centred on a square of the longer edge, then resized."""
    edge = max(picture.size)
    canvas = Image.new("RGB", (edge, edge), fill)
    canvas.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
    return squash(canvas, side, fill)


def crop(picture: Image.Image, side: int, fill: tuple[int, int, int]) -> Image.Image:
    """The shorter edge resized to `side`, then the centre."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    grown = int(side * long / short)
    picture = picture.resize((side, grown) if width <= height else (grown, side), Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def squash(picture: Image.Image, side: int, fill: tuple[int, int, int]) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BICUBIC)


FITS = {"pad": pad, "crop": crop, "squash": squash}


def as_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture -> uint8 [3, height, width]"""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()


def build(config: Config, *, side: int, fill: tuple[float, float, float]) -> Square:
    return Square(config.fit, side, fill)


EXAMPLE = {"fit": "pad"}
