"""vlmkit presets"""

from __future__ import annotations

from vlmkit.compose.find import every
from vlmkit.compose.nodes import plain
from vlmkit.compose.read import read
from vlmkit.errors import VlmkitError

from . import console
from .arguments import Json


def presets(json: Json = False) -> None:
    """The presets that are found by name, and what shadows what."""
    rows, seen = [], set()
    for found in every():
        shadowed = found.name in seen
        seen.add(found.name)
        rows.append((found.name, found.owner, str(found.path), shadowed, "" if shadowed else _about(found.name)))
    if json:
        keys = ("name", "owner", "path", "shadowed", "about")
        return console.document([dict(zip(keys, row, strict=True)) for row in rows])
    shown = [(name, owner, "shadowed by the one above" if shadowed else about.partition(". ")[0].rstrip("."))
             for name, owner, _, shadowed, about in rows]  # fmt: skip
    console.columns(shown, ("preset", "owner", "about"))


def _about(name: str) -> str:
    """One line, also for a preset that has a fault: the list is where one goes to look for it."""
    try:
        said = plain(read(name)).get("about", "")
    except VlmkitError as error:
        said = f"cannot be read: {error.what}"
    return " ".join(str(said).split())
