"""What appears whole or not at all: a folder, filled beside its place, synced, put there by one rename; a text file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import SaveError

HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2
FULL = (errno.ENOSPC, errno.EDQUOT)
STANDS = "what stood there before still does"
LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def replacing(folder: Path, needs: int = 0) -> Iterator[Path]:
    """A new folder to fill. When the block ends well, it stands at `folder`; what stood there before is gone.

    needs   bytes that will be written, so that too small a disk is told before anything is
    Raises SaveError, also for an OSError of the block: no room, no right, another writer.
    """
    beside = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(folder) as alone:
            if alone:
                _sweep(folder)
            if (free := shutil.disk_usage(folder.parent).free) < needs:
                raise _full(folder, needs, needs - free)
            try:
                beside.mkdir()
                yield beside
                for path in (*beside.rglob("*"), beside):
                    _sync(path)
                _put(beside, folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise _refused(error, folder, needs) from None


def _put(beside: Path, folder: Path) -> None:
    """Give a folder its name; afterwards `beside` is what bore it before, or nothing."""
    try:
        beside.rename(folder)  # nothing is there, or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(beside, folder)
    _sync(folder.parent)


def _exchange(beside: Path, folder: Path) -> None:
    """Swap two folders by one rename; where the system has none, by two. Killed between, the next save mends it."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux
    if swap and not swap(HERE, os.fsencode(beside), HERE, os.fsencode(folder), EXCHANGE):
        return
    old = folder.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
    folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    old.rename(beside)


def _sweep(folder: Path) -> None:
    """Remove what killed saves left beside a folder. Only its one writer may."""
    left = re.compile(re.escape(f".{folder.name}.") + "(new|old)-[0-9a-f]{8}")
    for path in [p for p in folder.parent.iterdir() if left.fullmatch(p.name)]:
        if path.name.startswith(f".{folder.name}.old-") and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def writing(file: Path) -> Iterator[IO[str]]:
    """A text file that has its name only once all of it is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    with part.open("w", encoding="utf-8") as written:
        yield written
    part.replace(file)


@contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """Be the one writer of a folder. The system takes a dead writer's lock away; the file tells who holds it.

    False where the file system knows no locks.
    """
    file = folder.with_name(f".{folder.name}.lock")
    handle = _open(file)
    try:
        while (held := _lock(handle, folder)) and not _names(file, handle):  # its holder removed it just now
            os.close(handle)
            handle = _open(file)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(me).encode(), 0)
        try:
            yield held
        finally:
            file.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock(handle: int, folder: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SaveError(f"is being written by {_owner(handle)}", where=folder, code="VK-SAVE-BUSY",
                        hint="wait for it, or save to another folder") from None
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        return False
    return True


def _names(file: Path, handle: int) -> bool:
    """Whether the name still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 1000, 0))
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _refused(error: OSError, folder: Path, needs: int) -> SaveError:
    """What went wrong, after all that was written is removed again."""
    if error.errno not in FULL:
        return SaveError(f"cannot be written: {error.strerror or error}", where=folder, hint=STANDS)
    return _full(folder, needs, needs - shutil.disk_usage(next(p for p in folder.parents if p.exists())).free)


def _full(folder: Path, needs: int, missing: int) -> SaveError:
    told = f"{missing:,} bytes are missing" if missing > 0 else "no room is left"  # a quota, or it was taken meanwhile
    return SaveError(f"the disk is full: {told} of {needs:,}", where=folder, code="VK-SAVE-ROOM",
                     hint=f"make room or save elsewhere; {STANDS}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
