"""Pictures from a path, bytes, a PIL image or an array: upright, 8-bit, RGB."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from ..errors import MediaDecodeError, MediaFormatError, MediaLimitError
from ..limits import current
from .files import naming, open_file
from .png import check_rows, checked_png

T = TypeVar("T")
Source = Any  # str | PathLike | bytes | PIL.Image | uint8 array [height, width, 3]
Flip = Image.Transpose
ORIENTATION = 0x0112
TURNS = {2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE,
         6: Flip.ROTATE_270, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_90}  # fmt: skip
JPEG_PACE = 200e6  # pixels a second that one scan of a JPEG passes over, on a slow core
GIF_FRAMES = 10_000  # not counted further
LOADING = Lock()  # of images opened by others: the same one may be shown twice


class Format(NamedTuple):
    name: str
    start: bytes
    plugin: Callable[..., ImageFile.ImageFile]  # the plugin itself: Pillow's own limits are process-wide switches


FORMATS = (
    Format("PNG", b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    Format("JPEG", b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    Format("WebP", b"RIFF", WebPImagePlugin.WebPImageFile),
    Format("GIF", b"GIF8", GifImagePlugin.GifImageFile),
    Format("BMP", b"BM", BmpImagePlugin.BmpImageFile),
)
OTHERS = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%!PS": "EPS", b"%PDF": "PDF", b"\0\0\1\0": "ICO", b"8BPS": "PSD",
          b"\0\0\0\x0cjP": "JPEG 2000", b"\xffO\xffQ": "JPEG 2000", b"<": "SVG or XML", b"\x1a\x45\xdf\xa3": "a clip"}


class Picture:
    """A picture whose header is read.   height, width: of the upright picture"""

    def __init__(self, image: Image.Image, data: bytes = b"", source: Source = None) -> None:
        self._image, self._data, self._source = image, data, source
        self._loading = Lock() if data else LOADING
        width, height = image.size
        check_size(height, width)
        self._turn = _turn(image)
        sideways = self._turn in (Flip.TRANSPOSE, Flip.TRANSVERSE, Flip.ROTATE_90, Flip.ROTATE_270)
        self.height, self.width = (width, height) if sideways else (height, width)

    def decode(self) -> Image.Image:
        """Read the pixels -> upright RGB, transparency laid on white; not to be written to."""
        with naming(self._source):
            return self._decode()

    def _decode(self) -> Image.Image:
        with self._loading:
            _guard(lambda: _load(self._image), "the pixels are cut off or damaged")
        if isinstance(self._image, PngImagePlugin.PngImageFile) and self._data:
            check_rows(self._data, self._image)
        rgb = _guard(lambda: _flatten(self._image), "the pixels cannot be turned into colours")
        dropped = _frames(self._image, self._data) - 1
        if dropped > 0:
            warnings.warn(f"an animated picture: only its first frame is used, {dropped} are dropped", stacklevel=4)
        return rgb if self._turn is None else rgb.transpose(self._turn)


def look(source: Source) -> Picture:
    """Read no more than the header; everything a header can tell is checked here."""
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return Picture(source)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        with naming(source), open_file(source, current().image_max_bytes, "image.max_bytes") as file:
            return _parse(file.read(), source)
    if hasattr(source, "__array__"):
        return Picture(_from_array(np.asarray(source)))
    raise MediaFormatError(f"a picture is a path, bytes, a PIL image or an array, not {type(source).__name__}")


def open_picture(source: Source) -> Image.Image:
    """An upright RGB picture."""
    return look(source).decode()


def picture_id(image: Image.Image, options: str = "") -> str:
    """Identity of a picture in caches: its size, its pixels and how they are prepared, never what a file claims."""
    head = f"{image.width} {image.height} {options}\0".encode()
    return hashlib.sha256(head + image.convert("RGB").tobytes()).hexdigest()


def check_size(height: int, width: int) -> None:
    """Refuse a picture, or a frame given by hand, by its size alone."""
    limits, size = current(), f"{height} x {width} pixels (height x width)"
    if not height or not width:
        raise MediaDecodeError(f"a picture of {size}")
    if height * width > limits.image_max_pixels:
        raise MediaLimitError(f"a picture of {size}", limit=limits.image_max_pixels,
                              got=height * width, setting="image.max_pixels")
    if max(height, width) > limits.image_max_aspect * min(height, width):
        raise MediaLimitError(f"a strip of {size}", limit=limits.image_max_aspect,
                              got=max(height, width) // min(height, width), setting="image.max_aspect")


def _parse(data: bytes, source: Source) -> Picture:
    """Bytes -> Picture, by what they are and not by what they are called."""
    found = next((f for f in FORMATS if data.startswith(f.start)), None)
    if found is None or (found.name == "WebP" and data[8:12] != b"WEBP"):
        name = next((name for start, name in OTHERS.items() if data.startswith(start)), "none of them")
        raise MediaFormatError(f"found {name}; read are {', '.join(f.name for f in FORMATS)}")
    if found.name == "PNG":
        data = checked_png(data)
    if found.name == "WebP":
        _check_webp(data)  # its decoder takes memory for the canvas at once
    image = _guard(lambda: found.plugin(io.BytesIO(data)), f"the {found.name} header is damaged")
    picture = Picture(image, data, source)
    if found.name == "JPEG":
        _check_scans(data, picture)
    return picture


def _load(image: Image.Image) -> None:
    """Read the pixels; those of a photograph into one piece of memory, which a tiler can read in place."""
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB" and image.tile:
        image.im = _imaging.new_block(image.mode, image.size)
    image.load()


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; what shines through is white."""
    hole = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits, whatever Pillow calls them
        grey = np.asarray(image)
        light = (grey.clip(0, 65535) >> 8).astype(np.uint8)
        if isinstance(hole, int):
            light[grey == hole] = 255
        return Image.fromarray(light).convert("RGB")
    if image.mode == "F":
        raise MediaFormatError("pixels of mode F have no known range", hint="scale them to 8 bits first")
    if hole is None and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return image if image.mode == "RGB" else image.convert("RGB")
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return white


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """uint8 [height, width] or [height, width, 1 | 3 | 4]; the order of axes is never guessed."""
    if array.dtype != np.uint8:
        raise MediaFormatError(f"an array of {array.dtype}; pixels are uint8", hint="scale to 0..255 first")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MediaFormatError(f"an array of shape {list(array.shape)}; a picture is [height, width, 3]")
    if not array.size:
        raise MediaDecodeError(f"an empty array of shape {list(array.shape)}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to set the picture upright. A note that cannot be read is ignored."""
    try:
        notes = Image.Image.getexif(image)  # a PNG's own method decodes the pixels first
        return TURNS.get(notes.get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds on broken notes
        warnings.warn("the picture's EXIF notes cannot be read; its orientation is taken as it is", stacklevel=4)
        return None


def _frames(image: Image.Image, data: bytes) -> int:
    """How many frames a picture file holds; 1 unless it is animated."""
    if isinstance(image, GifImagePlugin.GifImageFile):
        return _gif_frames(data)
    if isinstance(image, PngImagePlugin.PngImageFile | WebPImagePlugin.WebPImageFile):
        return int(getattr(image, "n_frames", 1))
    return 1


def _gif_frames(data: bytes) -> int:
    """Walk the blocks of a GIF; Pillow would unpack each of them."""
    frames = 0
    try:
        at = 13 + _table(data[10])
        while frames < GIF_FRAMES and data[at] in (0x2C, 0x21):  # a frame, an extension
            if data[at] == 0x2C:
                frames += 1
                at += 11 + _table(data[at + 9])
            else:
                at += 2
            while data[at]:
                at += data[at] + 1
            at += 1
    except IndexError:
        pass
    return frames


def _table(flags: int) -> int:
    """Bytes of a GIF colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_webp(data: bytes) -> None:
    """The canvas of a WebP file, from the first bytes."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise MediaDecodeError("the WebP file is cut off")
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    check_size(height, width)


def _check_scans(data: bytes, picture: Picture) -> None:
    """A progressive JPEG may pass over its pixels again and again."""
    passes = data.count(b"\xff\xda") * picture.height * picture.width
    most = int(JPEG_PACE * current().image_decode_seconds)
    if passes > most:
        raise MediaLimitError("a JPEG that takes too long to read", limit=most, got=passes,
                              setting="image.decode_seconds")


def _guard(call: Callable[[], T], what: str) -> T:
    """Run a decoder; its many errors become one."""
    try:
        return call()
    except (MediaFormatError, MediaLimitError, MediaDecodeError):
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise MediaLimitError("the picture needs more memory than there is", limit="memory", got="more",
                              setting="image.max_pixels") from None
    except Exception as error:
        raise MediaDecodeError(f"{what} ({type(error).__name__})") from None
