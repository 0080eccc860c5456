"""Writes docs/parts.md from the parts themselves.   python docs/make_parts.py"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from vlmkit.hookspecs import KINDS
from vlmkit.plugins import make_manager
from vlmkit.registry import Entry, entries

HEAD = """# Parts

Every part that comes with vlmkit, and its fields; then every preset, of vlmkit and of the packages in `plugins/`.
Written by `docs/make_parts.py`; `vlmkit parts` and `vlmkit presets` list those of your plugins, too.
A field without a default must be given.
"""
ROOT = Path(__file__).parents[1]


def page() -> str:
    manager = make_manager(entry_points=False)
    sections = [(kind, entries(kind, manager)) for kind in KINDS]
    parts = "".join(f"\n## {kind}\n" + "".join(map(part, found)) for kind, found in sections if found)
    return HEAD + parts + "\n## presets\n" + presets()


def presets() -> str:
    """What each is about, and which parts it names itself; those it extends name the rest."""
    folders = [("vlmkit", ROOT / "presets"), *((folder.parents[1].name, folder) for folder in
                                               sorted(ROOT.glob("plugins/*/vlmkit_*/presets")))]  # fmt: skip
    text = "\n| preset | from | extends | parts it names | |\n|---|---|---|---|---|\n"
    for owner, folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            said: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            name = (file.parent if file.stem == "preset" else file.with_suffix("")).relative_to(folder).as_posix()
            base = said.get("extends") or ()
            base = ", ".join(f"`{one}`" for one in ([base] if isinstance(base, str) else base))
            about = " ".join(str(said.get("about", "")).split())
            text += f"| `{name}` | {owner} | {base} | {', '.join(sorted(named(said)))} | {about} |\n"
    return text


def named(said: Any) -> set[str]:
    """Every part that a preset's own file names: `mlp`, `flat`."""
    if isinstance(said, list):
        return set().union(*map(named, said))
    if not isinstance(said, dict):
        return set()
    short = {f"`{said[kind]}`" for kind in KINDS if isinstance(said.get(kind), str)}
    return short | ({f"`{said['use']}`"} if "use" in said else set()) | set().union(*map(named, said.values()))


def part(entry: Entry) -> str:
    fields = {name: field for name, field in entry.config.model_fields.items() if name != "use"}
    text = f"\n### `{entry.kind}: {entry.name}`\n\n{entry.summary}\n"
    if fields:
        text += "\n| field | type | default | |\n|---|---|---|---|\n"
        text += "".join(row(name, field) for name, field in fields.items())
    return text


def row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
    return f"| `{name}` | {kind_of(field.annotation)} | {default} | {field.description or ''} |\n"


def kind_of(annotation: Any) -> str:
    """A type in the words of YAML."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{shown(choice)}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(arm) for arm in get_args(annotation)))
    if get_origin(annotation) in (tuple, list):
        inner = dict.fromkeys(kind_of(arm) for arm in get_args(annotation) if arm is not ...)
        return f"list of {' or '.join(inner)}"
    if get_origin(annotation) is dict:
        return "mapping"
    words = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", dict: "mapping"}
    return words.get(annotation, "section")


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if hasattr(value, "model_dump"):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.model_dump().items()) + "}"
    return str(value) if value != "" else "''"


if __name__ == "__main__":
    Path(__file__).with_name("parts.md").write_text(page(), encoding="utf-8")
