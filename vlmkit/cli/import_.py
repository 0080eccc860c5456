"""vlmkit import FOLDER|HUB_ID --out DIR"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmkit
from vlmkit.errors import CheckpointMismatchError

from . import arguments as a
from . import console, weights

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset


def import_(
    folder: Annotated[str, typer.Argument(metavar="FOLDER|HUB_ID", help="Weights in any layout that vlmkit knows.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Presets or key=value.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    json: a.Json = False,
) -> None:
    """Turn weights of any known layout into a vlmkit folder.

    Every tensor is kept, also blocks and norms that are never run, so that an export gives back the same.
    """
    with console.progress(f"reading {folder}"):
        from vlmkit.checkpoint.paper import paper

        plan = paper(folder, *(words or ()))
        given = {word.partition("=")[0] for word in words or ()}
        more = [f"{path}=true" for path in partial(plan.preset) if path not in given]
        with suppress(CheckpointMismatchError):  # somebody left out what is never run
            plan = paper(plan.preset, *more) if more else plan
    base = weights.nearest(plan.preset)
    changed = weights.changes(plan.preset, base) if base else {}
    changed = {path: change for path, change in changed.items() if not path.endswith("tower.whole")}
    if not json:
        console.title(plan.preset.name)
        for line in plan.lines():
            print(line)
        if base:
            print()
            weights.tell(base, changed)
        print()
    with console.progress(f"writing {out}"):
        written = vlmkit.save(*vlmkit.load(plan.preset), out)
    if json:
        return console.document({"out": str(written), "nearest": base, "sections": plan.lines(), "notes": plan.notes,
                                 "changed": {path: change._asdict() for path, change in changed.items()}})  # fmt: skip
    print(written)


def partial(preset: Preset) -> list[str]:
    """The fields that say whether towers of somebody else's folder keep what is never run, where they do not."""
    if any(entry.format == "native" for entry in preset.weights):
        return []
    towers: dict[str, Any] = {"tower": preset.tower, "image.tower": preset.image and preset.image.tower,
                              "video.tower": preset.video and preset.video.tower}  # fmt: skip
    return [f"{path}.whole" for path, tower in towers.items() if getattr(tower, "whole", None) is False]
