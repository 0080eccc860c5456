"""Colours, letters and hatching that all pictures here share."""

from __future__ import annotations

import numpy
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
INK, FAINT, LINE, PAPER = (32, 36, 44), (122, 128, 140), (214, 218, 226), (255, 255, 255)
TILE, NEWLINE, PREFIX, LOST = (36, 99, 235), (245, 124, 0), (142, 68, 200), (215, 48, 60)
MARGIN = 28


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def picture(pixels: Tensor) -> Image.Image:
    """uint8 [3, height, width] -> a picture"""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def hatch(onto: Image.Image, mask: numpy.ndarray) -> Image.Image:
    """Fade and hatch where the mask [height, width] is true."""
    rows, cols = numpy.indices(mask.shape)
    stripe = (rows + cols) % 11 < 2
    pixels = numpy.asarray(onto).astype(numpy.float32)
    pixels[mask] = pixels[mask] * 0.3 + 0.7 * 255
    pixels[mask & stripe] = LOST
    return Image.fromarray(pixels.astype(numpy.uint8))


def grow(mask: Tensor, height: int, width: int) -> numpy.ndarray:
    """bool [rows, cols] -> bool [height, width], each cell a block"""
    rows, cols = mask.shape
    y = (numpy.arange(height) * rows // height)[:, None]
    x = (numpy.arange(width) * cols // width)[None, :]
    return numpy.asarray(mask.numpy()[y, x])


def badge(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int) -> None:
    """The number of a tile in a filled pill whose upper left corner is at (x, y)."""
    x, y = at
    letters = font(size)
    wide = draw.textlength(text, font=letters) + size * 0.9
    draw.rounded_rectangle((x, y, x + wide, y + size * 1.45), radius=size * 0.7, fill=TILE)
    draw.text((x + wide / 2, y + size * 0.72), text, font=letters, fill=PAPER, anchor="mm")


def legend(draw: ImageDraw.ImageDraw, at: tuple[float, float], entries: list[tuple[Colour, str]]) -> None:
    """Small squares with words, from (x, y) to the right."""
    x, y = at
    for colour, words in entries:
        draw.rounded_rectangle((x, y, x + 16, y + 16), radius=3, fill=colour)
        draw.text((x + 24, y + 8), words, font=font(16), fill=FAINT, anchor="lm")
        x += 24 + draw.textlength(words, font=font(16)) + 28
