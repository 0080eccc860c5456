"""vlmkit ablate STUDY [WORDS] --out DIR"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import vlmkit
from vlmkit.compose.study import Study
from vlmkit.errors import PresetError

from . import arguments as a
from . import console


def ablate(
    words: a.Words,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the cells, the table and the report.")],
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is finished in this folder, do the rest.")
                      ] = False,
    json: a.Json = False,
) -> None:
    """Train what a study varies, and lay it side by side.

    Every cell is rehearsed before the first starts. The folder gets table.md, report.html and, for each cell, what
    repeats it: vlmkit train DIR/CELL/seed-0/run.yaml --out AGAIN
    """
    study = vlmkit.compose(*words)
    if not isinstance(study, Study):
        raise PresetError("says nothing about what varies", where=f"preset {study.name}",
                          hint="give it a section `vary`")
    with console.progress("rehearsing"):
        from vlmkit.train import ablate as studies
        from vlmkit.train import report
        from vlmkit.view.page import Panel, write

        report.drawing()
    try:
        rows = studies.ablate(study, out, resume, console.warn)
    except KeyboardInterrupt:
        console.warn(f"what is finished is in {out}; the same command with --resume does the rest")
        raise
    panels = [Panel(*one) for one in report.panels(study, rows, report.write(study, rows, out))]
    write(out / "report.html", study.name, study.about, panels)
    if json:
        return console.document(rows)
    print(report.table(study, rows))
