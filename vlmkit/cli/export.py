"""vlmkit export FOLDER --format llava-hf --out DIR [--check]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmkit.errors import WeightsError

from . import arguments as a
from . import console
from .generate import load


def export(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="A checkpoint folder, or what else has weights.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Presets or key=value.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    format: Annotated[str, typer.Option(help="The layout; `vlmkit parts format` lists them.")] = "llava-hf",
    check: Annotated[
        bool, typer.Option("--check", help="Load the export and compare what it answers, here and in transformers.")
    ] = False,
    dtype: a.Dtype = None,
    json: a.Json = False,
) -> None:
    """Write a model in a layout that other engines load.

    llava-hf is read by transformers and vLLM. A part that has no home there is named, and nothing is written.
    """
    model, processor = load(source, words or [], "cpu", dtype, "auto")
    from vlmkit.checkpoint.export import write

    from . import compare

    with console.progress(f"writing {out}"):
        written, notes = write(model, processor, out, format)
    if not json:
        for note in notes:
            print(note)
    rows: list[compare.Row] = []
    if check:
        asked = compare.questions(model)
        with console.progress("asking the model"):
            heard = compare.listen(model, processor, asked)
        del model
        with console.progress("asking its export"):
            rows = compare.compare(written, asked, heard)
    if json:
        console.document({"out": str(written), "format": format, "notes": notes, "check": [r._asdict() for r in rows]})
    else:
        if rows:
            console.columns([compare.line(row) for row in rows], ("check", "by", "tokens", "logits", "greedy text"))
        print(written)
    if not all(row.good for row in rows):
        raise WeightsError("the export does not answer as the model does", where=written)
