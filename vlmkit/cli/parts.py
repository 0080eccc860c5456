"""vlmkit parts [KIND]"""

from __future__ import annotations

from typing import Annotated

import typer

import vlmkit
from vlmkit.hookspecs import KINDS

from . import console
from .arguments import Json


def parts(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}; all when not given.")] = None,
    json: Json = False,
) -> None:
    """The parts there are, and who brought them."""
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"no kind named {kind!r}; there are: {', '.join(KINDS)}")
    found = vlmkit.parts(kind)
    if json:
        return console.document([{"kind": e.kind, "name": e.name, "plugin": e.plugin, "module": e.module,
                                  "summary": e.summary} for e in found])  # fmt: skip
    rows = [(e.kind, e.name, e.plugin, e.summary) for e in found]
    console.columns(rows, ("kind", "name", "plugin", "what it is"))
