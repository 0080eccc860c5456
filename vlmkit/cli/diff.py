"""vlmkit diff PRESET_A PRESET_B [WORDS]"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import vlmkit
from vlmkit.compose.bind import sources
from vlmkit.compose.say import shown

from . import console
from .arguments import Json
from .check import facts

A = Annotated[str, typer.Argument(metavar="PRESET_A", help="A preset.")]
B = Annotated[str, typer.Argument(metavar="PRESET_B", help="The preset it is compared with.")]
More = Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Laid over PRESET_B.")]


def diff(a: A, b: B, words: More = None, json: Json = False) -> None:
    """What differs between two presets, in fields, tokens and bytes."""
    one, two = vlmkit.compose(a), vlmkit.compose(b, *(words or ()))
    said = [{path: s.value for path, s in sources(p).items() if path not in ("name", "about")} for p in (one, two)]
    fields = changes(*said)
    with console.progress("rehearsing both"):
        counted = changes(*(_numbers(facts(vlmkit.check(p))) for p in (one, two)))
    if json:
        return console.document({"a": one.name, "b": two.name, "fields": fields, "numbers": counted})
    names = (one.name, two.name) if one.name != two.name else (one.name, f"{two.name} with words")
    if not fields:
        return print(f"{names[0]} and {names[1]} are the same model")
    console.columns([(path, *map(_value, pair)) for path, pair in fields.items()], ("field", *names))
    print()
    if not counted:
        return print("parameters, tokens and bytes are the same")
    rows = [(what, *("-" if n is None else f"{n:,}" for n in pair), _change(*pair)) for what, pair in counted.items()]
    console.columns(rows, ("", *names, ""), right=(1, 2, 3))


def changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Path -> both values, where they differ; None where one has no such field."""
    order = [*one, *(path for path in two if path not in one)]
    return {path: (one.get(path), two.get(path)) for path in order if one.get(path) != two.get(path)}


def _numbers(facts: dict[str, Any]) -> dict[str, int]:
    parts = {f"parameters of {section}": n for section, n in facts["parameters"].items()}
    sizes = {f"bytes of {what}": n for what, n in facts["bytes"].items()}
    return {**parts, "parameters": facts["total"], **{f"tokens: {k}": n for k, n in facts["tokens"].items()}, **sizes}


def _value(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else shown(value)


def _change(one: int | None, two: int | None) -> str:
    """The second relative to the first."""
    if not one or two is None:
        return ""
    return f"{(two - one) / one:+.1%}" if 0.5 < two / one < 2 else f"x {two / one:.3g}"
