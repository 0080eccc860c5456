"""vlmkit tokens PRESET [WORDS] FILE..."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vlmkit
from vlmkit.compose.merge import is_word

from . import console
from .arguments import Json

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM


def tokens(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PRESET [WORDS]... FILE...", help="A preset, key=value, then pictures and clips."),
    ],
    together: Annotated[bool, typer.Option("--together", help="As parts of one conversation.")] = False,
    json: Json = False,
) -> None:
    """How many tokens pictures and clips become, from headers alone."""
    preset, files = split(words)
    with console.progress("counting"):
        from vlmkit.view.visual import is_clip, plan

        model = skeleton(preset)
        alone = not together or sum(not is_clip(file) for file in files) == 1
        planned = [plan(model, file, alone) for file in files]
    total = sum(p.tokens for p in planned)
    if json:
        rows = [{"file": str(p.path), **p.layout._asdict(), "tiles": p.layout.tiles, "tokens": p.tokens}
                for p in planned]  # fmt: skip
        return console.document({"preset": preset.name, "files": rows, "total": total})
    table = [(str(p.path), f"{cut.height} x {cut.width}", f"{cut.frames} frames" if cut.frames else
              f"{cut.tiles} tile{'s' * (cut.tiles != 1)}", p.tokens) for p in planned for cut in [p.layout]]
    if len(planned) > 1:
        table.append(("total", "", "", total))
    console.columns(table, ("file", "height x width", "", "tokens"), right=(3,))


def split(words: list[str]) -> tuple[Preset, list[Path]]:
    """The first word and every key=value make the preset; the rest are files."""
    first, *rest = words
    files = [Path(word) for word in rest if not is_word(word) or Path(word).exists()]
    if not files:
        raise typer.BadParameter("name at least one picture or clip")
    return vlmkit.compose(first, *(word for word in rest if Path(word) not in files)), files


def skeleton(preset: Preset) -> VLM:
    """The model on the meta device: shapes, no weights."""
    from vlmkit.model.assemble import assemble

    return assemble(preset)
