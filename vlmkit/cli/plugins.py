"""vlmkit plugins; vlmkit plugins check PACKAGE; vlmkit plugins new NAME --kind KIND"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmkit import registry
from vlmkit.compose.find import every
from vlmkit.errors import PluginError
from vlmkit.plugins import Manager, default

from . import console
from .arguments import Json

app = typer.Typer(help="Who offers parts, presets and commands; check one, or begin one.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def plugins(context: typer.Context, json: Json = False) -> None:
    """What each plugin offers, and what is wrong with it."""
    if context.invoked_subcommand:
        return
    manager, shipped = default(), Counter(found.owner for found in every())
    parts, wrong = Counter(name for name, _ in manager.parts), problems(manager)
    rows = [(name, package, parts[name], shipped[name], some(manager.commands.get(name, [])),
             len(wrong.get(name, ())) or None) for name, package in manager.packages.items()]  # fmt: skip
    if json:
        good = [{"plugin": name, "package": package, "parts": count, "presets": presets,
                 "commands": manager.commands.get(name, []), "problems": wrong.get(name, [])}
                for name, package, count, presets, _, _ in rows]  # fmt: skip
        return console.document({"plugins": good, "broken": [b._asdict() for b in manager.broken],
                                 "left_out": manager.left_out})  # fmt: skip
    console.columns(rows, ("plugin", "package", "parts", "presets", "commands", "problems"), right=(2, 3, 5))
    for broken in manager.broken:
        console.warn(f"\n{broken.plugin} ({broken.package}) is broken: {broken.reason}")
    for line in (line for lines in wrong.values() for line in lines):
        console.warn(f"\n{line}")
    if manager.left_out:
        console.warn(f"\nVLMKIT_PLUGINS leaves out: {', '.join(manager.left_out)}")


def some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def problems(manager: Manager) -> dict[str, list[str]]:
    """Plugin -> what will go wrong when it is used: names that two claim, modules that are not there."""
    found: dict[str, list[str]] = {}
    for owner, part in manager.parts:
        try:
            registry.find(part.kind, part.name, manager)
            if importlib.util.find_spec(part.module) is None:
                raise PluginError(f"there is no module {part.module}", where=f"{part.kind} {part.name}")
        except (PluginError, ImportError) as error:
            found.setdefault(owner, []).append(str(error).partition("\n")[0])
    return found


@app.command()
def check(
    package: Annotated[str, typer.Argument(help="A plugin, or the package it came in.")], json: Json = False
) -> None:
    """Check that its parts keep what their kinds promise, and that its presets fit together."""
    from vlmkit.testing import examine, examine_preset, parts_of, presets_of

    found: dict[str, list[Any]] = {}
    for entry in parts_of(package):
        with console.progress(f"{entry.kind} {entry.name}"):
            found[f"{entry.kind} {entry.name}"] = list(examine(entry))
    for name in presets_of(package):
        found[f"preset {name}"] = [examine_preset(name)]
    failed = [(of, o) for of, outcomes in found.items() for o in outcomes if o.state == "failed"]
    if json:
        console.document([{"of": of, **o._asdict()} for of, outcomes in found.items() for o in outcomes])
    else:
        states = [(of, Counter(o.state for o in outcomes)) for of, outcomes in found.items()]
        console.columns([(of, n["passed"], n["failed"], n["skipped"]) for of, n in states],
                        ("", "passed", "failed", "skipped"), right=(1, 2, 3))  # fmt: skip
        for of, o in failed:
            console.warn(f"\n{of}: {o.check}\n  {o.promise}\n  but: {o.said}")
    if failed:
        raise typer.Exit(PluginError.exit)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the package, such as vlmkit-pooling.")],
    kind: Annotated[str, typer.Option(help="tower, projector, packer, decoder, dataset or metric.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder it is made in.")] = Path("."),
) -> None:
    """Begin a package with one part, its tests and a preset; it installs and passes at once."""
    from vlmkit.testing.scaffold import make

    folder = make(name, kind, out)
    print(folder)
    console.warn(f"next: pip install -e {folder} && vlmkit plugins check {folder.name}")
