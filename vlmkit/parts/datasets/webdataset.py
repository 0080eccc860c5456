"""Conversations in tars of the webdataset kind: `0001.json` with `0001.jpg`, `0001.png` or `0001.mp4` beside it."""

from __future__ import annotations

import os
import tarfile
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError
from vlmkit.limits import current

from . import rows

KINDS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "gif": "image", "bmp": "image",
         "mp4": "video", "mov": "video", "mkv": "video", "webm": "video", "avi": "video", "json": "json"}  # fmt: skip


class Config(PartConfig):
    """Plain tars; a sample's .json holds its `conversations` or `messages`."""

    path: str = Field(description="a .tar, or a folder of them")


class Member(NamedTuple):
    name: str
    kind: str
    start: int
    size: int


class Tars:
    """Members are listed once; their bytes are read when they are asked for. What else lies beside is not looked at."""

    def __init__(self, config: Config) -> None:
        path = rows.existing(config.path, "file or folder")
        self.paths = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not self.paths:
            raise DataError("a folder without a .tar", where=path)
        self.samples = [(tar, members) for tar, path in enumerate(self.paths) for members in _list(path)]
        self.files = [path.open("rb") for path in self.paths]

    def __len__(self) -> int:
        return len(self.samples)

    @rows.placed
    def __getitem__(self, at: int) -> rows.Item:
        tar, members = self.samples[at]
        found: dict[str, list[bytes]] = {"image": [], "video": [], "json": []}
        for member in members:
            found[member.kind].append(self._read(tar, member))
        if len(found["json"]) != 1:
            raise DataError(f"{len(found['json'])} .json, 1 wanted")
        row = rows.parse(found.pop("json")[0])
        names = {PurePosixPath(m.name).name: m for m in members}
        said = {key: row.get(key) for key in rows.KEYS} if isinstance(row, dict) else {}
        return rows.messages(said | found, lambda name: self._named(tar, names, name))

    def place(self, at: int) -> str:
        tar, members = self.samples[at]
        return f"{self.paths[tar]}:{_key(members[0].name)}"

    def _named(self, tar: int, names: dict[str, Member], name: str) -> bytes:
        """The file that a part names is one beside it, wherever it lay before."""
        if (member := names.get(PurePosixPath(name).name)) is None:
            raise DataError(f"no {name[:80]!r} beside it")
        return self._read(tar, member)

    def _read(self, tar: int, member: Member) -> bytes:
        if member.size > (most := current().video_max_bytes):
            raise DataError(f"{member.name} is too large", limit=most, got=member.size, setting="video.max_bytes")
        data = os.pread(self.files[tar].fileno(), member.size, member.start)
        if len(data) != member.size:
            raise DataError(f"{member.name} is cut off")
        return data


def _list(path: Path) -> list[list[Member]]:
    """The members of each sample: neighbours whose names are alike up to the first dot."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                kind = KINDS.get(info.name.rpartition(".")[2].lower())
                if info.isreg() and not info.issparse() and kind:
                    members.append(Member(info.name, kind, info.offset_data, info.size))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"no tar that is read in place: {error}", where=path,
                        hint="a compressed one must be unpacked to a plain .tar") from None
    return [list(some) for _, some in groupby(members, key=lambda member: _key(member.name))]


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def build(config: Config) -> Tars:
    return Tars(config)


EXAMPLE: dict[str, Any] = {"path": "shards"}
