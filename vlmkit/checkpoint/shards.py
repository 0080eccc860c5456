"""Tensors to safetensors files: one, or shards with an index. One at a time in memory, hashed as it is written."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .files import INDEX, ONE
from .tensors import NUMBERS, PLAIN, finite

LINE = 256  # bytes for a tensor in a header and an index
NAMES = {dtype: name for name, dtype in NUMBERS.items()}
Digests = dict[str, dict[str, Any]]  # file -> bytes, sha256


def write(tensors: Mapping[str, Tensor], folder: Path, most: int) -> Digests:
    """Write tensors into a folder.   name -> [any]

    most   bytes of tensors in one file, where a single tensor is not larger
    A tensor that bears several names is written once; the file's `__metadata__` says which names are tied to it.
    """
    kept, tied = _once(tensors)
    shards: list[dict[str, Tensor]] = [{}]
    room = most
    for name, tensor in kept.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= tensor.nbytes
    total = len(shards)
    names = [ONE] if total == 1 else [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
    digests = {}
    homes: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        notes = {name: to for name, to in tied.items() if to in shard}
        digests[file] = _file(folder / file, shard, notes)
        homes |= dict.fromkeys([*shard, *notes], file)
    if total > 1:
        total_size = sum(tensor.nbytes for tensor in kept.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(homes.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return digests


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that will be written, about: tensors, tied ones once, and a line of a header for each name."""
    return sum(tensor.nbytes for tensor in _once(tensors)[0].values()) + LINE * len(tensors)


def _once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under their first name, and further names -> first name."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.is_meta or not PLAIN.fullmatch(name):
            raise WeightsError(f"{name!r} is {tensor.dtype} on {tensor.device} and cannot be stored", where="the model",
                               hint=f"wanted values, as one of {', '.join(NAMES.values())}")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or first.setdefault(place, name) == name:
            kept[name] = tensor
        else:
            tied[name] = first[place]
    return kept, tied


def _file(file: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> dict[str, Any]:
    sha256, size = hashlib.sha256(), 0
    with file.open("wb") as opened:
        for block in _blocks(tensors, notes):
            opened.write(block)
            sha256.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest()}


def _blocks(tensors: dict[str, Tensor], notes: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The header, then the tensors end to end, those of the widest numbers first, so that each lies aligned."""
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **notes}}
    end = 0
    for name, tensor in order:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name, tensor in order:
        values = tensor.detach().cpu().contiguous()
        finite(name, values, "the model")
        yield values.view(-1).view(torch.uint8).numpy().data
