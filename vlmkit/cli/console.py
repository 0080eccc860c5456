"""What commands print: answers on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any


def document(data: Any) -> None:
    """One JSON document, and nothing else, on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def warn(message: str) -> None:
    """A line for the person, beside the answer."""
    print(_paint(message, "1;31", sys.stderr) if message.startswith("error") else message, file=sys.stderr)


def title(text: str) -> None:
    print(_paint(text, "1", sys.stdout))


def marked(text: str) -> str:
    """Words that stand out: green on a terminal, else in double brackets."""
    return _paint(text, "1;32", sys.stdout) if lively(sys.stdout) else f"[[{text}]]"


def columns(rows: Iterable[Sequence[object]], heads: Sequence[str] = (), right: Sequence[int] = ()) -> None:
    """Rows in columns as wide as they need to be; numbers (`right`) to the right, heads dimmed on a terminal."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    every = ([list(heads)] if heads else []) + texts
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))] if every else []
    for number, row in enumerate(every):
        cells = [cell.rjust(w) if i in right else cell.ljust(w)
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        line = "  ".join(cells).rstrip()
        print(_paint(line, "2", sys.stdout) if heads and number == 0 else line)


def amount(count: float) -> str:
    """A number of bytes for people: 14.1 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on standard error that something takes a while: a spinner on a terminal, else one plain line."""
    if not lively(sys.stderr):
        print(f"{what} ...", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def each(items: Sequence[Any], what: str) -> Iterator[Any]:
    """Walk over items with a bar on standard error."""
    if not lively(sys.stderr):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True), transient=True)


def lively(stream: IO[str]) -> bool:
    """Is a person looking, one who wants colours and bars?"""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


def _paint(text: str, code: str, stream: IO[str]) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if lively(stream) else text
