"""vlmkit show PRESET [WORDS]"""

from __future__ import annotations

from typing import Annotated

import typer

import vlmkit
from vlmkit.compose.bind import sources
from vlmkit.compose.say import shown

from . import console
from .arguments import Json, Words


def show(
    words: Words,
    given: Annotated[bool, typer.Option("--set", help="Only what a file or a word says, no defaults.")] = False,
    json: Json = False,
) -> None:
    """A resolved preset: every value, with the place where it was set."""
    preset = vlmkit.compose(*words)
    found = {path: s for path, s in sources(preset).items() if not (given and s.place == "default")}
    if json:
        values = {path: {"value": s.value, "from": s.place} for path, s in found.items()}
        return console.document({"preset": preset.name, "resolved": preset.dump(), "values": values})
    console.title(preset.name)
    if preset.about:
        print(preset.about.strip())
    rows: list[tuple[str, str, str]] = []
    section = ""
    for path, source in found.items():
        if path in ("name", "about") or (path == "needs" and not source.value):
            continue
        if (head := path.partition(".")[0].partition("[")[0]) != section:
            section = head
            rows.append(("", "", ""))
        rows.append((path, source.value if isinstance(source.value, str) else shown(source.value), source.place))
    console.columns(rows)
