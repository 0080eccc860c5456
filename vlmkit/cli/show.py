"""vlmkit show PRESET [WORDS]"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vlmkit
from vlmkit.compose.bind import sources
from vlmkit.compose.say import shown
from vlmkit.errors import VlmkitError

from . import console, weights
from .arguments import Json, Words

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset


def show(
    words: Words,
    given: Annotated[bool, typer.Option("--set", help="Only what a file or a word says, no defaults.")] = False,
    json: Json = False,
) -> None:
    """A resolved preset: every value, with the place where it was set. Of a folder also what its weights fill."""
    preset = vlmkit.compose(*words)
    found = {path: s for path, s in sources(preset).items() if not (given and s.place == "default")}
    base = weights.nearest(preset)
    changed = weights.changes(preset, base) if base else {}
    lines = filled(preset)
    if json:
        values = {path: {"value": s.value, "from": s.place} for path, s in found.items()}
        more = {"nearest": base, "changed": {path: c._asdict() for path, c in changed.items()}, "weights": lines}
        return console.document({"preset": preset.name, "resolved": preset.dump(), "values": values, **more})
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
    if base:
        print()
        weights.tell(base, changed)
    if lines:
        print("", *lines, sep="\n")


def filled(preset: Preset) -> list[str]:
    """Which section the weights fill, from their headers; nothing is fetched, and what does not fit is told."""
    if not preset.weights or not all(Path(entry.from_).is_dir() for entry in preset.weights):
        return []
    from vlmkit.checkpoint.paper import paper

    try:
        return paper(preset, verify=False).lines()
    except VlmkitError as error:
        return [f"its weights do not load: {error}"]
