"""Pickled weights to safetensors, for who asks for it by name: in a process of its own that may do little else.

There torch's restricted reader makes tensors and plain containers and calls nothing, within limits on memory, time and
files. What it refuses is refused: no other reader is tried.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import CheckpointFormatError, CheckpointSafetyError, VlmkitError, WeightsError
from ..limits import current
from .files import ONE, inside, pickled

CHILD = "from vlmkit.checkpoint.pickled import main; main()"
COPIED = (".json", ".jinja", ".model", ".txt")  # what else such folders say
START, PACE = 60, 5 << 20  # seconds of work, and bytes for each further one: no processor of today is slower
PATIENCE = 20.0  # seconds that may pass for one of work, on a machine that does much else
ROOM = 1 << 30  # bytes of memory beyond twice the largest file


@contextmanager
def unpickled(folder: Path, name: str, place: Path) -> Iterator[Path]:
    """A copy of a folder, named `name`, with safetensors instead of pickles, in a temporary folder within `place`.

    Raises CheckpointSafetyError for a pickle that asks for more than tensors, or for too much memory or time.
    """
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unpickled-", dir=place) as made:
        out = Path(made) / name
        out.mkdir()
        convert(folder, out)
        yield out


def convert(folder: Path, out: Path) -> None:
    """Write what a folder holds into another one, its pickled weights as safetensors."""
    names = [file.name for file in folder.iterdir()]
    some = pickled(names)
    if not some:
        raise CheckpointFormatError("holds no pickled weights", where=folder, hint="import it without --unpickle")
    files = [inside(folder, name) for name in some]
    for name in names:
        if name.endswith(COPIED) and not name.endswith(".index.json"):
            if (size := inside(folder, name).stat().st_size) > (most := current().tokenizer_max_bytes):
                raise CheckpointFormatError("too large", where=folder / name, limit=most, got=size,
                                            setting="tokenizer.max_bytes")
            shutil.copyfile(folder / name, out / name)
    _ask(files, out)


def _ask(files: list[Path], out: Path) -> None:
    """Have a child convert some files, and say what became of them."""
    total = sum(file.stat().st_size for file in files)
    seconds, memory = START + total // PACE, ROOM + 2 * max(file.stat().st_size for file in files)
    words = [str(out), str(memory), str(seconds), *(str(file.absolute()) for file in files)]
    env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run([sys.executable, "-P", "-c", CHILD, *words], env=env, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=PATIENCE * seconds, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckpointSafetyError("took too long to read, and was stopped", where=files[0]) from None
    if done.returncode == 0:
        return
    with suppress(ValueError, LookupError, TypeError):
        told = json.loads(done.stdout.splitlines()[-1])
        raise (CheckpointSafetyError if told["safety"] else WeightsError)(told["what"], where=told["file"])
    raise CheckpointSafetyError(f"the process that read it ended with status {done.returncode}", where=files[0])


def main() -> None:
    """The child: a folder for the results, bytes of memory, seconds, files."""
    out, memory, seconds, *files = sys.argv[1:]
    import torch

    torch.ones(1).sum()  # what is loaded late is loaded before there are limits
    _bound(int(memory), int(seconds), max(Path(file).stat().st_size for file in files))
    for at, file in enumerate(files, 1):
        name = ONE if len(files) == 1 else f"model-{at:05}-of-{len(files):05}.safetensors"
        if told := attempt(Path(file), Path(out) / name):
            print(json.dumps(told | {"file": file}))
            sys.exit(1)


def attempt(file: Path, new: Path) -> dict[str, Any]:
    """Convert one file; what was wrong with it, and whether it asked for what is no tensor. Empty when all went well.

    Only torch's restricted reader is asked, with whatever limits the process has.
    """
    import torch

    from . import shards

    apart = new.with_suffix("")
    apart.mkdir()
    try:
        shards.write(_tensors(torch.load(file, map_location="cpu", weights_only=True)), apart, 1 << 62)
        (apart / ONE).rename(new)
        apart.rmdir()
    except VlmkitError as error:
        return {"what": error.what, "safety": False}
    except OSError as error:
        return {"what": f"cannot be converted: {error.strerror or type(error).__name__}", "safety": False}
    except Exception as error:  # the reader's own; its text names what a pickle asks for, or that memory is missing
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"what": "needs more memory than its size explains", "safety": True}
        asked = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        told = f"asks for {asked[1]}" if asked else f"cannot be read ({type(error).__name__})"
        return {"what": f"{told}, and is no pickle of plain tensors", "safety": True}
    return {}


def _tensors(found: Any) -> dict[str, Any]:
    """Names and tensors, or why there are none."""
    import torch

    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise CheckpointFormatError(f"holds a {type(found).__name__}, wanted names and tensors")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointFormatError(f"{name[:80]!r} is a {type(value).__name__}, wanted a tensor")
    return {name: value.detach().contiguous() for name, value in found.items()}


def _bound(memory: int, seconds: int, size: int) -> None:
    """So much memory beyond what the process has, so much time, one file of about the same size, no process."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            here = int(file.read().split()[0]) * resource.getpagesize()
        for what, most in ((resource.RLIMIT_AS, here + memory), (resource.RLIMIT_CPU, seconds),
                           (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)), (resource.RLIMIT_NPROC, 0)):
            resource.setrlimit(what, (most, most))
