"""Where a training stands, on disk: safetensors and JSON, whole or not at all. The last two are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint import shards
from ..checkpoint.files import parse
from ..checkpoint.native import digest
from ..checkpoint.tensors import headers, read
from ..checkpoint.whole import replacing
from ..errors import ResumeError, VlmkitError

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


def save(out: Path, step: int, told: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write the state after so many steps.   name -> [any]"""
    folder = home(out, step)
    with replacing(folder, shards.size(tensors) + BESIDES) as beside:
        files = shards.write(tensors, beside, SHARD)
        (beside / TOLD).write_text(json.dumps(told), "utf-8")
        (beside / LOCK).write_text(json.dumps({f.name: files.get(f.name) or digest(f) for f in beside.iterdir()}))
    for old in saves(out)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
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
    """The tensors of a state.   name -> [any]"""
    return dict(read(headers(folder), check=False))


def _verified(folder: Path) -> dict[str, Any]:
    """What a state tells, if every file is the one that was written."""
    locked = parse((folder / LOCK).read_bytes(), folder / LOCK, "is no lock file")
    for name in sorted(locked.keys() | {f.name for f in folder.iterdir()} - {LOCK}):
        if not (folder / name).is_file() or digest(folder / name) != locked.get(name):
            raise ResumeError(f"{name} is not what was written")
    return parse((folder / TOLD).read_bytes(), folder / TOLD, "is no state")
