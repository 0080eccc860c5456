"""Which files of a folder hold its weights, and whether they may be opened at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .. import limits
from ..errors import CheckpointFormatError, CheckpointSafetyError
from ..parts.formats.files import parse

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how such files begin
REFUSED = "unpickling runs code and is refused"
BESIDES = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|trainer_state).*")  # pickles without weights
NAME = re.compile(r"[^\W.][\w.+=@ -]{0,254}", re.ASCII)  # a plain file name: no folder, no address, not hidden
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def choose(names: Iterable[str], where: object) -> list[str]:
    """The names that hold the weights, out of a folder's.

    `model.safetensors`; else an index, which comes alone and names its shards; else one numbered set that is whole;
    else the only safetensors file there is.
    """
    names = sorted(names)
    indexes = [n for n in names if n.endswith(".safetensors.index.json")]
    files = [n for n in names if n.endswith(".safetensors")]
    if ONE in files:
        return [ONE]
    if INDEX in indexes or len(indexes) == 1:
        return [INDEX] if INDEX in indexes else indexes
    numbered = {(found[1], found[3]) for n in files if (found := NUMBERED.fullmatch(n))}
    if len(numbered) == 1 and all(NUMBERED.fullmatch(n) for n in files):
        return _whole(*numbered.pop(), files, where)
    if len(files) == 1:
        return files
    if files or indexes:
        shown = ", ".join((indexes or files)[:10])
        raise CheckpointFormatError(f"which of these are the weights: {shown}?", where=where,
                                    hint=f"keep those of one model, or name its file {ONE}")
    if some := [n for n in names if n.endswith(PICKLED)]:
        raise CheckpointSafetyError(f"only pickled weights are here ({some[0]}); {REFUSED}", where=where,
                                    hint=f"where it is trusted, convert it: {conversion(some)}")
    raise CheckpointFormatError(f"no {ONE} and no {INDEX}", where=where)


def pickled(names: Iterable[str]) -> list[str]:
    """The names that hold pickled weights, out of a folder's: `pytorch_model*`, else what is no state of a training."""
    some = sorted(n for n in names if n.endswith(PICKLED) and NAME.fullmatch(n))
    return [n for n in some if n.startswith("pytorch_model")] or [n for n in some if not BESIDES.fullmatch(n)]


def conversion(some: list[str]) -> str:
    """The command that makes safetensors of pickled files, each beside its own."""
    first = next(iter(pickled(some)), some[0])
    ending = Path(first).suffix
    every = f"pytorch_model*{ending}" if first.startswith("pytorch_model") else first
    return ('python -c "import glob, torch, safetensors.torch as s; [s.save_file({k: t.contiguous().clone() for k, t '
            "in torch.load(f, 'cpu', weights_only=True).items()}, "
            f"f[:-{len(ending)}] + '.safetensors') for f in glob.glob('{every}')]\"")


def inside(folder: Path, name: object) -> Path:
    """A file of the folder by its plain name. A link may lead within the folder or to the blobs of a hub's cache."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise CheckpointSafetyError(f"a file is named {str(name)[:80]!r}; wanted a plain file name", where=folder)
    file = folder / name
    if file.is_symlink():
        home, target = folder.resolve(), Path(os.path.realpath(file))
        allowed = [home]
        if home.parent.name == "snapshots":  # repository/snapshots/commit/name -> repository/blobs, cache/blobs/..
            allowed += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
        if not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointSafetyError("is a link that leaves its folder", where=file,
                                        hint="put the file itself into the folder")
    if not file.is_file():
        raise CheckpointFormatError(f"{name} is missing, or no regular file", where=folder)
    return file


def weight_map(index: Path) -> dict[str, str]:
    """What an index says.   tensor -> name of its shard"""
    most = limits.current().ckpt_max_index_bytes
    if (size := index.stat().st_size) > most:
        raise CheckpointFormatError("the index is too large", where=index, setting="ckpt.max_index_bytes", limit=most,
                                    got=size)
    told = parse(index.read_bytes(), index, "is no index of shards")
    said, about = told.get("weight_map"), told.get("metadata", {})
    if not isinstance(said, dict) or not said or not isinstance(about, dict):
        raise CheckpointFormatError("is no index of shards: wanted a table `weight_map`", where=index)
    total = about.get("total_size", 0)  # published ones count tied weights twice: looked at, not compared
    if type(total) not in (int, float) or not 0 <= total < 1e30:
        raise CheckpointFormatError(f"is no index of shards: total_size is {str(total)[:80]!r}", where=index)
    for name in said.values():
        if not isinstance(name, str):
            raise CheckpointFormatError(f"is no index of shards: a shard is named {str(name)[:80]}", where=index)
        if not NAME.fullmatch(name):
            raise CheckpointSafetyError(f"a shard is named {name[:80]!r}; wanted a plain file name", where=index)
    _few(len(set(said.values())), index)
    return said


def stranger(file: Path, head: bytes, length: int) -> CheckpointFormatError | CheckpointSafetyError:
    """What a file is that is named like safetensors and is none.   length: what its first bytes would mean"""
    size = file.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        return CheckpointFormatError("is a pointer of git-lfs; the weights themselves are not here", where=file,
                                     hint="run `git lfs pull` in its folder, or download the file itself")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return CheckpointFormatError("is a web page, not weights", where=file,
                                     hint="read it: it says why it came; then download the file again")
    if head.startswith(PICKLES):
        old = file.with_suffix(".bin").name
        return CheckpointSafetyError(f"is a pickle under another name; {REFUSED}", where=file,
                                     hint=f"where it is trusted, rename it {old} and convert it: {conversion([old])}")
    told = f"a header of {length} bytes in a file of {size}; cut short, or no safetensors at all"
    return CheckpointFormatError(told if size else "is empty", where=file, hint="download it again")


def _whole(stem: str, total: str, files: list[str], where: object) -> list[str]:
    """All shards of a numbered set."""
    wanted = [f"{stem}-{i:05}-of-{total}.safetensors" for i in range(1, _few(int(total), where) + 1)]
    if lost := [n for n in wanted if n not in files]:
        raise CheckpointFormatError(f"shard {lost[0]} is missing ({len(lost)} of {len(wanted)})", where=where)
    return wanted


def _few(shards: int, where: object) -> int:
    if shards > (most := limits.current().ckpt_max_shards):
        raise CheckpointFormatError("too many shards", where=where, setting="ckpt.max_shards", limit=most, got=shards)
    return shards
