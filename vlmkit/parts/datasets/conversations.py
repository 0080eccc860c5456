"""Conversations in a JSON or JSONL file, as LLaVA's are, with pictures and clips in a folder."""

from __future__ import annotations

import mmap
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError

from . import rows

TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}]', re.DOTALL)
CHUNK = 1 << 22  # bytes


class Config(PartConfig):
    """A file of rows with `conversations` or `messages`, and `image` or `video` beside them."""

    file: str = Field(description="a list of rows (.json) or a row on each line (.jsonl)")
    images: str | None = Field(None, description="the folder that pictures and clips lie in; the file's own if null")


class Index(NamedTuple):
    """Where each row stands in a file.   starts, ends [rows] in bytes;   lines [rows] from 1, None in a list"""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64] | None


class Conversations:
    """Rows are read when they are asked for; of the file, only where they begin and end is held."""

    def __init__(self, config: Config) -> None:
        self.path = rows.existing(config.file, "file")
        self.root = rows.existing(config.images, "folder") if config.images else self.path.parent
        try:
            self.file = self.path.open("rb")
            self.index = index(self.path)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", where=self.path) from None

    def __len__(self) -> int:
        return len(self.index.starts)

    @rows.placed
    def __getitem__(self, at: int) -> rows.Item:
        start, end = int(self.index.starts[at]), int(self.index.ends[at])
        said = rows.parse(os.pread(self.file.fileno(), end - start, start))  # whatever others that share it read
        return rows.messages(said, partial(rows.below, self.root))

    def place(self, at: int) -> str:
        lines = self.index.lines
        return f"{self.path}[{at}]" if lines is None else f"{self.path}:{lines[at]}"


def index(path: Path) -> Index:
    """By what the file is: a list begins with a bracket."""
    with path.open("rb") as file:
        first = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if not first:
            raise DataError("an empty file", where=path)
        if first == b"[":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                return _items(text, path)
        file.seek(0)
        return _lines(file)


def _lines(file: Any) -> Index:
    """Lines that are not empty."""
    breaks, base = [np.array([-1])], 0
    while chunk := file.read(CHUNK):
        breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + base)
        base += len(chunk)
    edges = np.concatenate([*breaks, [base]])
    starts, ends = edges[:-1] + 1, edges[1:]
    kept = np.flatnonzero(ends - starts > 1)  # one byte is the end of an empty line
    return Index(starts[kept], ends[kept], kept + 1)


def _items(text: mmap.mmap, path: Path) -> Index:
    """The members of a list, found by their brackets."""
    spans: list[tuple[int, int]] = []
    depth = start = end = 0
    for token in TOKEN.finditer(text):
        sign = token[0]
        if sign in (b"{", b"["):
            depth += 1
            if depth == 2:
                start = token.start()
                _between(text[end:start], b"," if spans else b"[", path, len(spans))
        elif sign in (b"}", b"]"):
            depth -= 1
            if depth == 1:
                end = token.end()
                spans.append((start, end))
            if not depth:
                _between(text[end : token.start()], b"" if spans else b"[", path, len(spans))
                _between(text[token.end() :], b"", path, len(spans))
                break
    if depth:
        raise DataError(f"ends within row {len(spans)}", where=path)
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    return Index(starts, ends, None)


def _between(text: bytes, wanted: bytes, path: Path, row: int) -> None:
    """Rows are mappings; between them stands a comma and nothing else."""
    if text.lstrip(b"\xef\xbb\xbf").strip() != wanted:
        raise DataError(f"row {row} is no mapping, or no comma stands before it", where=path)


def build(config: Config) -> Conversations:
    return Conversations(config)


EXAMPLE: dict[str, Any] = {"file": "conversations.jsonl"}
