"""Safetensors files: headers without tensors, tensors when asked, and nothing that could run code."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from .. import limits
from ..errors import CheckpointCorruptError, CheckpointFormatError
from ..parts.formats.files import parse
from .files import choose, inside, stranger, weight_map

NUMBERS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
           "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
MAPPED = 64 << 20  # bytes of files from which on they are mapped
PLAIN = re.compile(r"[\x21-\x7e]{1,512}")  # characters a tensor name may have
AXES, COUNT = 16, 1 << 60  # of one tensor at most, empty axes counted as one: what torch can address


class Stored(NamedTuple):
    """One tensor as its header describes it.   start: its first byte in the file"""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def headers(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder, by name, without reading one. A tied name stands for the tensor it is tied to.

    Raises CheckpointSafetyError for pickled files and names that leave the folder, CheckpointFormatError for
    files that are not what they say.
    """
    stored: dict[str, Stored] = {}
    try:
        names = choose([file.name for file in folder.iterdir()], folder)
        index = inside(folder, names[0]) if names[0].endswith(".json") else None
        said = weight_map(index) if index else {}
        for file in [inside(folder, name) for name in (sorted(set(said.values())) or names)]:
            for name, row in _header(file):
                if name in stored:
                    raise CheckpointFormatError(f"tensor {name!r} is in {stored[name].file.name} too", where=file)
                stored[name] = row
    except OSError as error:
        raise CheckpointFormatError(f"cannot be read: {error.strerror}", where=error.filename or folder) from None
    if index:
        _agree(index, said, stored)
    return stored


def read(stored: Mapping[str, Stored], device: Any = "cpu", check: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file as they lie there; tied names share one.   name, [shape]

    check   refuse NaN and infinity in what is read

    A small checkpoint is read into memory of the tensors' own. The files of a large one are mapped, as transformers
    and llama.cpp do: a page comes from disk when it is first used, and a copy of it is made when it is first written
    to. Those are not checked here: that would read all of them.
    """
    large = mapped(row.file for row in stored.values())
    rows = sorted(stored.items(), key=lambda row: (row[1].file, row[1].start, row[1].shape, row[0]))
    for file, inner in groupby(rows, key=lambda row: row[1].file):
        try:
            with FileIO(file) as opened:
                source = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) if file in large else None
                for row, tied in groupby(inner, key=lambda row: row[1]):
                    names = [name for name, _ in tied]
                    tensor = (_take(opened, row) if source is None else _view(source, row)).to(device)
                    if check and source is None:
                        finite(names[0], tensor, file)
                    yield from ((name, tensor) for name in names)
        except OSError as error:
            raise CheckpointFormatError(f"cannot be read: {error.strerror}", where=file) from None


def mapped(files: Iterable[Path]) -> set[Path]:
    """Those to be mapped: all of a checkpoint that is large."""
    every = {file for file in files if file.exists()}  # who reads finds that one is gone
    return every if sum(file.stat().st_size for file in every) >= MAPPED else set()


def _view(mapped: mmap.mmap, row: Stored) -> Tensor:
    """One tensor where it lies in a mapped file; copied where a number would lie across its own bounds."""
    dtype = NUMBERS[row.dtype]
    if not row.numbers:
        return torch.empty(row.shape, dtype=dtype)
    whole = row.start - row.start % dtype.itemsize
    if whole == row.start:
        return torch.frombuffer(mapped, dtype=dtype, count=row.numbers, offset=row.start).view(row.shape)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, count=row.numbers * dtype.itemsize, offset=row.start)
    return raw.clone().view(dtype).view(row.shape)


def finite(name: str, tensor: Tensor, where: object = "") -> None:
    """Raise CheckpointCorruptError where a weight is NaN or infinite. One pass, no copy.   [any]"""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    numbers = tensor.half() if tensor.element_size() == 1 else tensor  # float8 has no sum
    if numbers.sum().isfinite():  # the cheapest pass that any of them spoils
        return
    nan, infinite = int(numbers.isnan().sum()), int(numbers.isinf().sum())
    if nan or infinite:  # else the sum was too large for its type
        raise CheckpointCorruptError(f"{name}: {nan} NaN and {infinite} infinite among {tensor.numel()} numbers",
                                     where=where, hint="no answer comes of such weights; take an earlier checkpoint")


def _take(opened: FileIO, row: Stored) -> Tensor:
    """One tensor, read into memory of its own: aligned, and safe from what happens to the file later."""
    tensor = torch.empty(row.shape, dtype=NUMBERS[row.dtype])
    left = tensor.view(-1).view(torch.uint8).numpy().data
    opened.seek(row.start)
    while left:
        got = opened.readinto(left)
        if not got:
            raise CheckpointFormatError("was cut short while it was read", where=row.file)
        left = left[got:]
    return tensor


def _agree(index: Path, said: dict[str, str], stored: dict[str, Stored]) -> None:
    """An index and its shards that differ are of two saves."""
    for name in sorted(said.keys() | stored.keys()):
        wanted = said.get(name, "no shard")
        found = stored[name].file.name if name in stored else "no shard"
        if wanted != found:
            raise CheckpointFormatError(f"tensor {name[:80]!r} is said to be in {wanted}, and is in {found}",
                                        where=index, hint="index and shards must come from the same save")


def _header(file: Path) -> list[tuple[str, Stored]]:
    """Every tensor of a file, and the names that are tied to one."""
    now, size = limits.current(), file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(512)
        length = struct.unpack("<Q", head[:8])[0] if len(head) > 8 else size
        if length > size - 8 or head[8:9] != b"{":
            raise stranger(file, head, length)
        if length > now.ckpt_max_header_bytes:
            raise CheckpointFormatError("the header is too long", where=file, setting="ckpt.max_header_bytes",
                                        limit=now.ckpt_max_header_bytes, got=length)
        opened.seek(8)
        header = parse(opened.read(length), file, "the header is damaged")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise CheckpointFormatError("the header is damaged: __metadata__ is no table of texts", where=file)
    if len(header) > now.ckpt_max_tensors:
        raise CheckpointFormatError("too many tensors", where=file, setting="ckpt.max_tensors",
                                    limit=now.ckpt_max_tensors, got=len(header))
    rows = _rows(file, header, 8 + length, size)
    tied = {n: rows[kept] for n, kept in notes.items() if kept in rows and n not in rows and PLAIN.fullmatch(n)}
    return [*rows.items(), *tied.items()]


def _rows(file: Path, header: dict[str, Any], start: int, size: int) -> dict[str, Stored]:
    """The tensors lie end to end, from the header to the end of the file: no hole, no overlap, nothing after."""
    rows, end = {}, 0
    for begin, stop, name in sorted((*_span(name, entry, file), name) for name, entry in header.items()):
        if begin != end:
            raise CheckpointFormatError(f"tensor {name!r} begins at byte {begin}; the one before it ends at {end}",
                                        where=file)
        rows[name] = Stored(file, header[name]["dtype"], tuple(header[name]["shape"]), start + begin)
        end = stop
    if start + end != size:
        told = "cut short" if start + end > size else "longer than its header says"
        raise CheckpointFormatError(f"{told}: {size} bytes, wanted {start + end}", where=file,
                                    hint="copy or download it again")
    return rows


def _span(name: str, entry: Any, file: Path) -> tuple[int, int]:
    """Where a tensor begins and ends among the data, if its description makes sense."""
    dtype, shape, span = (entry.get(k) if isinstance(entry, dict) else None for k in ("dtype", "shape", "data_offsets"))
    if (PLAIN.fullmatch(name) and isinstance(dtype, str) and dtype in NUMBERS and _counts(shape) and _counts(span)
            and len(shape) <= AXES and math.prod(filter(None, shape)) < COUNT and len(span) == 2
            and span[1] - span[0] == math.prod(shape) * NUMBERS[dtype].itemsize):  # fmt: skip
        return span[0], span[1]
    raise CheckpointFormatError(f"tensor {name[:80]!r} is described as {str(dtype)[:20]} {str(shape)[:80]}, "
                                f"bytes {str(span)[:80]}", where=file)


def _counts(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
