"""vlmkit check PRESET [WORDS]"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmkit
from vlmkit.errors import ShapeError, VlmkitError

from . import console
from .arguments import Json

if TYPE_CHECKING:
    from vlmkit.model.rehearse import Report

SIZES = ((336, 336), (480, 640), (1024, 768), (1080, 1920))  # height, width
FRAMES = (8, 32)


def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRESET [WORDS]...", help="A preset, then further presets or key=value."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every preset there is, one line each.")] = False,
    json: Json = False,
) -> None:
    """Rehearse without weights: shapes, parameters, tokens, bytes."""
    if every:
        return _every(json)
    if not words:
        raise typer.BadParameter("name a preset, or use --all")
    report = rehearsed(words)
    if json:
        return console.document(facts(report))
    console.title(f"{report.name} fits together")
    print()
    console.columns(report.shapes, ("section", "part", "shape", ""))
    print()
    idle = {section: f"{n:,} of them never run, and not built" for section, n in report.unused.items() if n}
    numbers = [(section, f"{count:,}", idle.get(section, "")) for section, count in report.parameters.items()]
    console.columns([*numbers, ("total", f"{report.total:,}", "")], ("parameters", "", ""), right=(1,))
    print()
    console.columns([(what, f"{n:,}") for what, n in tokens(report).items()], ("tokens", ""), right=(1,))
    print()
    memory = [(what, console.amount(size)) for what, size in facts(report)["bytes"].items()]
    console.columns(memory, ("memory in bfloat16", ""), right=(1,))


def rehearsed(words: list[str]) -> Report:
    with console.progress("rehearsing"):
        return vlmkit.check(vlmkit.compose(*words))


def tokens(report: Report) -> dict[str, int]:
    """Tokens of pictures and clips of common sizes, for the streams the model has."""
    kinds = {section.partition(".")[0] for section, *_ in report.shapes if "." in section}
    found = {f"picture {h} x {w}": report.tokens(h, w) for h, w in SIZES if "image" in kinds}
    for frames in FRAMES if "video" in kinds else ():
        with suppress(ShapeError):  # a tower that sees frames together takes one number of them
            found[f"clip of {frames} frames"] = report.tokens(frames=frames)
    return found


def facts(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    cache = f"cache of {report.context} tokens"
    return {
        "preset": report.name, "parameters": report.parameters, "unused": report.unused, "total": report.total,
        "shapes": [dict(zip(("section", "part", "shape", "note"), row, strict=True)) for row in report.shapes],
        "tokens": tokens(report), "context": report.context, "vocab": report.vocab,
        "bytes": {"weights": report.weight_bytes(), cache: report.cache_bytes(report.context)},
    }  # fmt: skip


def _every(json: bool) -> None:
    rows: list[dict[str, Any]] = []
    models = [name for name in vlmkit.presets() if not name.startswith(("runs/", "studies/"))]
    for name in console.each(models, "checking"):
        try:
            report = vlmkit.check(name)
            rows.append({"preset": name, "fits": True, "total": report.total, "tokens": tokens(report)})
        except VlmkitError as error:
            rows.append({"preset": name, "fits": False, "error": str(error)})
    if json:
        console.document(rows)
    else:
        console.columns([(r["preset"], "fits", f"{r['total']:,}") if r["fits"] else (r["preset"], "fails", "")
                         for r in rows], ("preset", "", "parameters"), right=(2,))  # fmt: skip
        for row in rows:
            if not row["fits"]:
                console.warn(f"\n{row['error']}")
    if not all(row["fits"] for row in rows):
        raise typer.Exit(2)
