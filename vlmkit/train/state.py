"""Where a training stands, on disk: safetensors and JSON, whole or not at all. The last two are kept."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..checkpoint import shards
from ..checkpoint.native import digest
from ..checkpoint.tensors import headers, read
from ..checkpoint.whole import replacing
from ..errors import ResumeError, VlmkitError
from ..parts.formats.files import parse

dcp: Any = torch.distributed.checkpoint
STATE = "state"  # the folder, in the folder of a training
TOLD, LOCK = "state.json", "lock.json"
KEEP = 2
SHARD, BESIDES = 5_000_000_000, 1 << 20  # bytes of tensors in one file; of all the rest


class Saved(NamedTuple):
    """A state that was read.   skipped: newer ones that are damaged, and why"""

    folder: Path
    told: dict[str, Any]
    tensors: dict[str, Tensor]
    skipped: list[str]


def save(out: Path, step: int, told: dict[str, Any], tensors: dict[str, Tensor], first: bool = True) -> Path:
    """Write the state after so many steps.   name -> [any]

    Of sharded tensors each process writes what it holds, by torch.distributed.checkpoint; the first one does the rest.
    """
    folder = home(out, step)
    parts = folder.with_name(f".{folder.name}.parts")
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    if sharded:
        for old in folder.parent.glob(".*.parts") if first else ():
            shutil.rmtree(old)  # before the others write: they wait for the plan of the first
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(parts), save_distributed=True))
    if not first:
        return folder
    with replacing(folder, BESIDES if sharded else shards.size(tensors) + BESIDES) as beside:
        files = {} if sharded else shards.write(tensors, beside, SHARD)
        for part in parts.iterdir() if sharded else ():
            part.rename(beside / part.name)
        (beside / TOLD).write_text(json.dumps(told), "utf-8")
        (beside / LOCK).write_text(json.dumps({f.name: files.get(f.name) or digest(f) for f in beside.iterdir()}))
    for old in saves(out)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    if sharded:
        parts.rmdir()
    return folder


def home(out: Path, step: int) -> Path:
    return out.resolve() / STATE / f"{step:08}"


def saves(out: Path) -> list[Path]:
    """The folders of all states, in order."""
    return sorted(path for path in (out / STATE).glob("[0-9]*") if path.is_dir())


def newest(out: Path) -> Saved:
    """The last state that is whole, compared with its digests first."""
    skipped: list[str] = []
    for folder in reversed(saves(out)):
        try:
            return Saved(folder, _verified(folder), load(folder), skipped)
        except (VlmkitError, OSError, KeyError, TypeError) as error:
            skipped.append(f"{folder}: {error}")
    if not skipped:
        raise ResumeError("there is nothing to resume", where=out, hint="start without --resume")
    raise ResumeError("no state is whole\n" + "\n".join(f"  {one}" for one in skipped), where=out)


def load(folder: Path) -> dict[str, Tensor]:
    """The tensors of a state, whole, whatever number of processes wrote it.   name -> [any]"""
    if not any(folder.glob("shard-*")):
        return dict(read(headers(folder), check=False))
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in stored.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _verified(folder: Path) -> dict[str, Any]:
    """What a state tells, if every file is the one that was written."""
    locked = parse((folder / LOCK).read_bytes(), folder / LOCK, "is no lock file")
    for name in sorted(locked.keys() | {f.name for f in folder.iterdir()} - {LOCK}):
        if not (folder / name).is_file() or digest(folder / name) != locked.get(name):
            raise ResumeError(f"{name} is not what was written")
    return parse((folder / TOLD).read_bytes(), folder / TOLD, "is no state")
