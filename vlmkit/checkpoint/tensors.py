"""Safetensors files: headers without tensors, tensors when asked, and nothing that could run code."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import limits
from ..errors import CheckpointFormatError, CheckpointSafetyError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL")
PLAIN = re.compile(r"[\x21-\x7e]{1,512}")  # characters a tensor name may have


class Stored(NamedTuple):
    """One tensor as its header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=)`: a key that comes twice is an error, not a silent winner."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def headers(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder, by name, without reading one.

    Raises CheckpointSafetyError for pickled files and names that leave the folder, CheckpointFormatError for
    files that are not what they say.
    """
    stored: dict[str, Stored] = {}
    for file in _files(folder):
        for name, dtype, shape in _header(file):
            if name in stored:
                raise CheckpointFormatError(f"tensor {name!r} is in {stored[name].file.name} too", where=file)
            stored[name] = Stored(file, dtype, shape)
    return stored


def read(stored: dict[str, Stored], device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file, straight to the device."""
    for file in sorted({s.file for s in stored.values()}):
        try:
            with safe_open(file, framework="pt", device=device) as shard:
                for name in (n for n, s in stored.items() if s.file == file):
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointFormatError(f"cannot be read: {error}", where=file) from None


def _files(folder: Path) -> list[Path]:
    if (folder / ONE).is_file():
        return [folder / ONE]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED)
    if pickled:
        raise CheckpointSafetyError(
            f"only pickled weights are here ({pickled[0]}); unpickling runs code and is refused", where=folder,
            hint="convert it where it is trusted: safetensors.torch.save_file(torch.load(file, weights_only=True), …)")
    raise CheckpointFormatError(f"no {ONE} and no {INDEX}", where=folder)


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.stat().st_size > limits.current().ckpt_max_index_bytes:
        raise CheckpointFormatError("the index is too large", where=index, setting="ckpt.max_index_bytes",
                                    limit=limits.current().ckpt_max_index_bytes, got=index.stat().st_size)
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"), object_pairs_hook=once)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointFormatError("is not an index of shards", where=index) from None
    if len(names) > limits.current().ckpt_max_shards:
        raise CheckpointFormatError("too many shards", where=index, setting="ckpt.max_shards",
                                    limit=limits.current().ckpt_max_shards, got=len(names))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name[:1] in ("", "."):
            raise CheckpointSafetyError(f"a shard is named {name!r}; wanted a plain file name", where=index)
        if not (folder / name).is_file():
            raise CheckpointFormatError(f"shard {name} is missing", where=folder)
    return [folder / name for name in names]


def _header(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        lead = opened.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
        if length > size - 8:
            raise CheckpointFormatError(f"a header of {length} bytes in a file of {size}; cut short, a pointer file, "
                                        "or no safetensors at all", where=file)
        if length > (most := limits.current().ckpt_max_header_bytes):
            raise CheckpointFormatError("the header is too long", where=file, setting="ckpt.max_header_bytes",
                                        limit=most, got=length)
        text = opened.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
        header.pop("__metadata__", None)
        rows = [(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointFormatError(f"the header is damaged: {error}", where=file) from None
    if len(rows) > limits.current().ckpt_max_tensors:
        raise CheckpointFormatError("too many tensors", where=file, setting="ckpt.max_tensors",
                                    limit=limits.current().ckpt_max_tensors, got=len(rows))
    for name, dtype, shape in rows:
        if not PLAIN.fullmatch(name) or dtype not in NUMBERS or not all(type(n) is int and n >= 0 for n in shape):
            raise CheckpointFormatError(f"tensor {name[:80]!r} is described as {dtype!r} {shape!r}", where=file)
        yield name, dtype, shape
