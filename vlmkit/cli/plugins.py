"""vlmkit plugins"""

from __future__ import annotations

from collections import Counter

from vlmkit.plugins import default

from . import console
from .arguments import Json


def plugins(json: Json = False) -> None:
    """What each plugin offers, and why a broken one is broken."""
    manager = default()
    parts = Counter(name for name, _ in manager.parts)
    folders = Counter(name for name, _ in manager.presets)
    rows = [(name, package, parts[name], folders[name]) for name, package in manager.packages.items()]
    if json:
        keys = ("plugin", "package", "parts", "preset_folders")
        good = [dict(zip(keys, row, strict=True)) for row in rows]
        return console.document({"plugins": good, "broken": [b._asdict() for b in manager.broken]})
    console.columns(rows, ("plugin", "package", "parts", "preset folders"), right=(2, 3))
    for broken in manager.broken:
        console.warn(f"\n{broken.plugin} ({broken.package}) is broken: {broken.reason}")
