"""Files and bytes as a stranger may give them: regular, not empty, not larger than allowed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MediaDecodeError, MediaError, MediaFormatError, MediaLimitError, clean

Buffer = bytes | bytearray | memoryview
LONG = 300  # characters; a longer path is hardly one


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """What goes wrong inside tells of which source, if that has a name and nobody told before."""
    try:
        yield
    except MediaError as error:
        if not error.where and isinstance(source, str | os.PathLike):
            error.where = clean(os.fspath(source))
        raise


def open_file(source: str | os.PathLike[str] | Buffer, most: float, setting: str) -> BinaryIO:
    """A path or the bytes themselves, as a file to read from. A path is a path: prefixes mean nothing in it."""
    if isinstance(source, Buffer):
        _check(len(source), most, setting, "the bytes")
        return io.BytesIO(source)
    path = os.fspath(source)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would block, a device would act
            raise MediaFormatError("not a regular file", where=path)
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        hint = "text that is a picture goes under the key base64" if len(path) > LONG else ""
        raise MediaError(f"cannot be opened: {type(error).__name__}", where=path[:LONG], hint=hint) from None
    file = os.fdopen(number, "rb")
    try:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode):
            raise MediaFormatError("not a regular file", where=path)
        _check(state.st_size, most, setting, path)
    except BaseException:
        file.close()
        raise
    return file


def _check(size: int, most: float, setting: str, where: str) -> None:
    if size > most:
        raise MediaLimitError("too large", where=where, limit=most, got=size, setting=setting)
    if not size:
        raise MediaDecodeError("empty", where=where)


def _missing(path: str) -> MediaError:
    error = MediaError("no such file", where=path, hint=f"the current folder is {Path.cwd()}", public="no such file")
    error.exit = 2
    return error
