"""vlmkit import FOLDER|HUB_ID --out DIR"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmkit
from vlmkit.errors import CheckpointMismatchError

from . import arguments as a
from . import console, weights

if TYPE_CHECKING:
    from vlmkit.checkpoint.transplant import Change
    from vlmkit.compose.preset import Preset


def import_(
    folder: Annotated[str, typer.Argument(metavar="FOLDER|HUB_ID", help="Weights in any layout that vlmkit knows.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Presets or key=value.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    unpickle: Annotated[
        bool, typer.Option("--unpickle", help="Convert pickled weights, in a process that may do nothing else.")
    ] = False,
    quantize: a.Quantize = None,
    json: a.Json = False,
) -> None:
    """Turn weights of any known layout into a vlmkit folder.

    Every tensor is kept, also blocks and norms that are never run, so that an export gives back the same.
    """
    with ExitStack() as kept:
        _import(str(_converted(folder, out, kept)) if unpickle else folder, words or [], out, quantize, json)


def _converted(source: str, out: Path, kept: ExitStack) -> Path:
    """A copy beside `out`, without pickles, for as long as `kept` is open."""
    from vlmkit.checkpoint.fetch import fetch
    from vlmkit.checkpoint.pickled import unpickled

    folder = Path(source).expanduser()
    with console.progress(f"converting {source}"):
        if folder.is_dir():
            return kept.enter_context(unpickled(folder, folder.resolve().name, out.absolute().parent))
        name = source.partition("@")[0].rpartition("/")[2]
        return kept.enter_context(unpickled(fetch(source, unpickle=True), name, out.absolute().parent))


def _import(folder: str, words: list[str], out: Path, quantize: str | None, json: bool) -> None:
    with console.progress(f"reading {folder}"):
        from vlmkit.checkpoint.paper import paper
        from vlmkit.checkpoint.transplant import compare

        plan = paper(folder, *words)
        given = {word.partition("=")[0] for word in words}
        more = [f"{path}=true" for path in partial(plan.preset) if path not in given]
        with suppress(CheckpointMismatchError):  # somebody left out what is never run
            plan = paper(plan.preset, *more) if more else plan
    base = weights.nearest(plan.preset)
    changed = weights.changes(plan.preset, base) if base else {}
    changed = {path: change for path, change in changed.items() if not path.endswith("tower.whole")}
    moved = compare(plan)
    if not json:
        console.title(plan.preset.name)
        for line in plan.lines():
            print(line)
        if base:
            print()
            weights.tell(base, changed)
        if moved:
            print()
            console.columns([_row(change) for change in moved], ("transplanted", "shape", "norm", "before", "cosine"))
        print()
    with console.progress(f"writing {out}"):
        written = vlmkit.save(*vlmkit.load(plan.preset, quantize=quantize), out)
    if json:
        return console.document({"out": str(written), "nearest": base, "sections": plan.lines(), "notes": plan.notes,
                                 "changed": {path: change._asdict() for path, change in changed.items()},
                                 "transplanted": [change._asdict() for change in moved]})  # fmt: skip
    print(written)


def _row(change: Change) -> tuple[str, ...]:
    """A transplanted tensor, as text."""
    shape = " x ".join(map(str, change.shape))
    if change.before is None:
        return change.name, shape, f"{change.norm:.4g}", "does not fit", ""
    return change.name, shape, f"{change.norm:.4g}", f"{change.before:.4g}", f"{change.cosine:.3f}"


def partial(preset: Preset) -> list[str]:
    """The fields that say whether towers of somebody else's folder keep what is never run, where they do not."""
    if any(entry.format == "native" for entry in preset.weights):
        return []
    towers: dict[str, Any] = {"tower": preset.tower, "image.tower": preset.image and preset.image.tower,
                              "video.tower": preset.video and preset.video.tower}  # fmt: skip
    return [f"{path}.whole" for path, tower in towers.items() if getattr(tower, "whole", None) is False]
