"""What a clip's first bytes say: which demuxer reads it, and whether the file ends before it says it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from ..errors import MediaDecodeError, MediaFormatError

BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
PICTURES = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"crx ")
TOP = {*BOXES, b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"meta", b"emsg"}  # others: rubbish at the end
MOST_BOXES = 100_000
SEGMENT = b"\x18\x53\x80\x67"


def demuxer(file: BinaryIO) -> str:
    """`mov`, `matroska` or `avi`, by content."""
    head = file.read(16)
    file.seek(0)
    if head[4:8] in BOXES and head[8:12] not in PICTURES:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise MediaFormatError("not a clip; read are MP4 and MOV, Matroska and WebM, AVI")


def check_whole(file: BinaryIO, name: str) -> None:
    """Raise when the outer boxes reach beyond the end: a cut clip must not pass for a shorter one."""
    size = file.seek(0, os.SEEK_END)
    END[name](file, size)
    file.seek(0)


def _mov(file: BinaryIO, size: int) -> None:
    at = 0
    for _ in range(MOST_BOXES):
        if at + 8 > size:
            return
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0 or head[4:8] not in TOP:  # to the end of the file
            return
        if length < 8:
            raise MediaDecodeError("a box of impossible length")
        at = _within(at + length, size)
    raise MediaDecodeError(f"more than {MOST_BOXES} boxes")


def _avi(file: BinaryIO, size: int) -> None:
    at = 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or not length:  # padding, or written without going back
            return
        at = _within(at + 8 + length, size)


def _matroska(file: BinaryIO, size: int) -> None:
    file.seek(4)
    at = 4 + _number(file)[0]
    at += file.tell() - 4
    file.seek(at)
    if file.read(4) == SEGMENT:
        length, known = _number(file)
        if known:
            _within(file.tell() + length, size)


def _number(file: BinaryIO) -> tuple[int, bool]:
    """An EBML length, and whether it is known (all ones mean: until the end)."""
    first = file.read(1) or b"\0"
    width = 9 - first[0].bit_length()
    if width > 8:
        raise MediaDecodeError("an impossible length")
    value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return value, value != (1 << 7 * width) - 1


def _within(end: int, size: int) -> int:
    if end > size:
        raise MediaDecodeError(f"cut off: {size} of at least {end} bytes are there")
    return end


END: dict[str, Callable[[BinaryIO, int], None]] = {"mov": _mov, "avi": _avi, "matroska": _matroska}
