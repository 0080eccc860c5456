"""Pictures from a path, bytes, base64, a PIL image or an array."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import MediaDecodeError, MediaError, MediaFormatError

Source = Any  # str | Path | bytes | PIL.Image | uint8 array [height, width, 3]


class Picture:
    """A picture whose header is read.   height, width: after turning it upright"""

    def __init__(self, image: Image.Image) -> None:
        self._image = ImageOps.exif_transpose(image)
        self.width, self.height = self._image.size

    def decode(self) -> Image.Image:
        return self._image.convert("RGB")


def look(source: Source) -> Picture:
    """Read no more than the header."""
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return Picture(source)
    if isinstance(source, np.ndarray):
        return Picture(Image.fromarray(source))
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            error = MediaError("no such file", where=source)
            error.exit = 2
            raise error
        source = Path(source).read_bytes()
    try:
        return Picture(Image.open(io.BytesIO(source)))
    except Image.UnidentifiedImageError:
        raise MediaFormatError("not a picture that can be read") from None
    except OSError as error:
        raise MediaDecodeError(f"damaged picture: {type(error).__name__}") from None


def open_picture(source: Source) -> Image.Image:
    """An upright RGB picture."""
    return look(source).decode()
