"""vlmkit parts [KIND]"""

from __future__ import annotations

from typing import Annotated

import typer

import vlmkit

from . import console
from .arguments import Json


def parts(
    kind: Annotated[str | None, typer.Argument(help="tower, projector, packer, decoder ...; all when not given.")] = None,
    json: Json = False,
) -> None:
    """The parts there are, and who brought them."""
    found = vlmkit.parts(kind)
    if json:
        return console.document([{"kind": e.kind, "name": e.name, "plugin": e.plugin, "module": e.module,
                                  "summary": e.summary} for e in found])  # fmt: skip
    console.columns([(e.kind, e.name, e.plugin, e.summary) for e in found], ("kind", "name", "plugin", "what it is"))
