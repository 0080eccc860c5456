"""What Pillow does not look at in a PNG file: checksums, missing rows, and notes that could unfold without end."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from ..errors import MediaDecodeError

UNREAD = {b"zTXt", b"iTXt", b"tEXt", b"iCCP"}  # may unfold to any size and say nothing about pixels
LANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # values of a pixel, by colour type
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7
STEP = 1 << 20


def checked_png(data: bytes) -> bytes:
    """Compare the checksums Pillow does not look at; leave out chunks that could unfold without end."""
    kept: list[bytes] = [data[:8]]
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise MediaDecodeError(f"the checksum of the PNG chunk {kind.decode('latin-1')} is wrong")
        if kind not in UNREAD:
            kept.insert(2 if kind == b"eXIf" else len(kept), data[at:end])  # notes are read before pixels
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise MediaDecodeError("the PNG file is cut off")


def check_rows(data: bytes, image: Image.Image) -> None:
    """A stream of pixels that ends early leaves black rows. Counting costs a second inflation, so it is done only
    where the last row is black, or where rows come interlaced."""
    width, height, depth, colour, _, _, laced = struct.unpack_from(">IIBBBBB", data, 16)
    if not laced and any(image.crop((0, image.height - 1, image.width, image.height)).tobytes()):
        return
    bits = LANES[colour] * depth
    grids = PASSES if laced else ((0, 0, 1, 1),)
    wanted = 0
    for top, left, down, right in grids:
        rows, cols = len(range(top, height, down)), len(range(left, width, right))
        wanted += rows * (1 + (cols * bits + 7) // 8) if cols else 0
    found = _inflated(data, wanted)
    if found < wanted:
        raise MediaDecodeError(f"cut off: pixels of {found} of {wanted} bytes are there")


def _inflated(data: bytes, most: int) -> int:
    """Bytes that the IDAT chunks unfold to, counted up to `most`."""
    inflate = zlib.decompressobj()
    found, at = 0, 8
    while at + 12 <= len(data) and found < most:
        length, kind = struct.unpack_from(">I4s", data, at)
        left = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while left and found < most and not inflate.eof:
            found += len(inflate.decompress(left, STEP))
            left = inflate.unconsumed_tail
        at += 12 + length
    return found
