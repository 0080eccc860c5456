"""Bicubic resizing for tilers: Pillow's own, or torch's, several times as fast; Pillow's pixels are read in place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Resample = Literal["pillow", "torch"]
Colour = tuple[int, int, int]
S = TypeVar("S")
T = TypeVar("T")
ABOUT = "who resizes: pillow, the reference; or torch, several times as fast, as torchvision does"
BAND = 1 << 20  # pixels that a thread takes at a time; Pillow holds so many in one piece


def resize(picture: Image.Image, sizes: Sequence[tuple[int, int]], resample: Resample, edge: int = 0,
           fill: Colour = (0, 0, 0)) -> list[Tensor]:
    """An RGB picture -> uint8 [height, width, 4] for each (height, width); the fourth value means nothing.

    edge, fill  first set the picture in the middle of a square of this colour
    """
    if resample == "torch":
        return _by_torch(picture, sizes, edge or picture.height, edge or picture.width, fill)
    if edge:
        picture = _centre(picture, -((edge - picture.height) // 2), (edge, edge), fill)
    return _each(lambda size: pixels(picture.resize(size[::-1], Image.Resampling.BICUBIC)), sizes)


def _by_torch(picture: Image.Image, sizes: Sequence[tuple[int, int]], high: int, wide: int, fill: Colour
              ) -> list[Tensor]:
    """In the middle of high x wide. Bands of rows are narrowed side by side, then the sheets of them are shortened.

    torch, too, rounds to uint8 between the two. Rows of nothing but `fill` need no narrowing.
    """
    lent = _lend(picture) if wide == picture.width else None
    step = max(1, BAND // wide)
    if lent is not None:
        step = max(step, -(-picture.height // torch.get_num_threads()))

    def narrow(top: int) -> list[Tensor]:
        size = wide, min(step, picture.height - top)
        rows = pixels(_centre(picture, top, size, fill)) if lent is None else lent[top : top + step]
        return [_stretch(rows, len(rows), width) for _, width in sizes]

    bands = zip(*_each(narrow, range(0, picture.height, step)), strict=True)
    return [_stretch(_sheet(some, high, fill), *size) for some, size in zip(bands, sizes, strict=True)]


def planes(pixels: Tensor) -> Tensor:
    """[height, width, 4] -> [3, height, width], a view"""
    return pixels[..., :3].permute(2, 0, 1)


def pixels(picture: Image.Image) -> Tensor:
    """An RGB picture -> uint8 [height, width, 4], in place where Pillow holds it in one piece; not to be written to."""
    found = _lend(picture)
    if found is not None:
        return found
    half = picture.height // 2
    boxes = (0, 0, picture.width, half), (0, half, picture.width, picture.height)
    return torch.cat([pixels(picture.crop(box)) for box in boxes])


class _Array(ctypes.Structure):
    """ArrowArray of the Arrow C data interface, as far as it is read."""


_Array._fields_ = [*((name, ctypes.c_int64) for name in ("length", "nulls", "offset", "count", "children_count")),
                   ("buffers", ctypes.POINTER(ctypes.c_void_p)),
                   ("children", ctypes.POINTER(ctypes.POINTER(_Array)))]  # fmt: skip
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Lent:
    """Pillow's memory as numpy reads it; the capsule keeps it alive."""

    def __init__(self, picture: Image.Image) -> None:
        _, self.capsule = picture.__arrow_c_array__()
        values = _Array.from_address(_pointer(self.capsule, b"arrow_array")).children[0].contents.buffers[1]
        self.__array_interface__ = {"shape": (picture.height, picture.width, 4), "typestr": "|u1", "version": 3,
                                    "data": (values, False)}


def _lend(picture: Image.Image) -> Tensor | None:
    try:
        return torch.from_numpy(numpy.asarray(_Lent(picture)))
    except ValueError:  # a large picture lies in several pieces
        return None


def _centre(picture: Image.Image, top: int, size: tuple[int, int], fill: Colour) -> Image.Image:
    """What is below `top`, at the top of a sheet of (width, height), in the middle from left to right."""
    sheet = Image.new("RGB", size, fill)
    sheet.paste(picture, ((size[0] - picture.width) // 2, -top))
    return sheet


def _sheet(bands: Sequence[Tensor], high: int, fill: Colour) -> Tensor:
    """Bands [rows, width, 4] -> [high, width, 4]: one below the other, in the middle of a higher sheet"""
    whole = torch.cat(list(bands)) if len(bands) > 1 else bands[0]
    if len(whole) == high:
        return whole
    sheet = torch.tensor([*fill, 0], dtype=torch.uint8).repeat(high, whole.shape[1], 1)
    top = (high - len(whole)) // 2
    sheet[top : top + len(whole)] = whole
    return sheet


def _stretch(rows: Tensor, height: int, width: int) -> Tensor:
    """uint8 [rows, cols, 4] -> [height, width, 4], by torch"""
    if rows.shape[:2] == (height, width):
        return rows
    four = rows[None].permute(0, 3, 1, 2)  # channels last: no value is moved
    return interpolate(four, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def _each(call: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """The results in order; several items at a time, for neither library holds the interpreter meanwhile."""
    threads = min(torch.get_num_threads(), len(items))
    if threads == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, items))
