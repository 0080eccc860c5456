"""Layers, one over the other: mappings merge, lists and scalars replace, `null` removes a section.

The `use` rule: a layer that names another part clears what lower layers said about the old one.
A bare word is short for `use`: `packer: flat` is `packer: {use: flat}`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vlmkit.errors import OverrideError, PresetError

from .nodes import Node, Path, dotted, parse

_KEY = r"[A-Za-z_][A-Za-z0-9_-]*"
_WORD = re.compile(rf"(?P<path>{_KEY}(\[[0-9]{{1,4}}\]|\.{_KEY})*)=(?P<value>.*)", re.DOTALL)
COMMAND_LINE = "command line"


def lay(below: Node | None, above: Node) -> Node:
    """One layer over the other."""
    if below is None or below.value is None:
        return above
    if isinstance(above.value, str) and isinstance(below.value, dict) and "use" in below.value:
        above = Node({"use": above}, above.place)  # a bare word, which may only restate the part
    if not isinstance(above.value, dict):
        return above
    if isinstance(below.value, str):
        below = Node({"use": below}, below.place)
    if not isinstance(below.value, dict) or _another(below, above):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        if node.value is None and isinstance(getattr(merged.get(key), "value", None), dict):
            del merged[key]
        else:
            merged[key] = lay(merged.get(key), node)
    return Node(merged, above.place)


def _another(below: Node, above: Node) -> bool:
    """Whether the upper layer names a different part."""
    old, new = below.value.get("use"), above.value.get("use")
    return old is not None and new is not None and old.value != new.value


class Word(NamedTuple):
    """One `key=value`."""

    path: Path
    node: Node


def is_word(text: str) -> bool:
    """Whether it sets a field; anything else names a preset."""
    return "=" in text and not text.startswith(("/", ".", "~"))


def read_word(text: str) -> Word:
    """`image.tiler.grids[0]=[1, 2]`: names with dots and [index], then a value as YAML writes it."""
    found = _WORD.fullmatch(text)
    if not found:
        raise OverrideError("a word is `key=value`, its key names joined by dots, lists as name[0]", where=_short(text))
    if "${" in found["value"]:
        raise OverrideError("references belong into files; write the value itself", where=_short(text))
    if not found["value"].strip():
        raise OverrideError("no value", where=_short(text), hint="`key=null` removes a section")
    try:
        node = parse(found["value"], COMMAND_LINE, line=False)
    except PresetError as error:
        raise OverrideError(error.what, where=_short(text), hint=error.hint) from None
    steps = re.findall(rf"{_KEY}|[0-9]+(?=\])", found["path"])
    return Word(tuple(int(s) if s.isdigit() else s for s in steps), node)


def set_words(tree: Node, texts: list[str]) -> Node:
    """All words over the tree, in their order; a key may appear once."""
    seen: set[Path] = set()
    for text in texts:
        path, node = read_word(text)
        if path in seen:
            raise OverrideError(f"{dotted(path)} is set twice", where=_short(text))
        seen.add(path)
        tree = lay(tree, _branch(tree, path, node, text))
    return tree


def _branch(tree: Node | None, path: Path, node: Node, text: str) -> Node:
    """The layer that sets one field; a list is repeated with one item changed."""
    if not path:
        return node
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        child = tree.value.get(step) if tree and isinstance(tree.value, dict) else None
        return Node({step: _branch(child, rest, node, text)}, COMMAND_LINE)
    items = list(tree.value) if tree and isinstance(tree.value, list) else []
    if step >= len(items):
        raise OverrideError(f"there is no item {step}: the list has {len(items)}", where=_short(text))
    items[step] = lay(items[step], _branch(items[step], rest, node, text))
    return Node(items, COMMAND_LINE)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
