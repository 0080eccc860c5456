"""A folder of weights in somebody else's layout -> the tree of a preset, each value with the file that says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit import registry
from vlmkit.contracts import CheckpointFormat
from vlmkit.errors import PresetError
from vlmkit.types import Described

from .merge import lay
from .nodes import Node, walk
from .preset import Preset

FACTS = ("tower", "projector", "decoder")  # sections whose numbers belong to the weights, not to how they are used


def format_of(folder: Path) -> str:
    """The name of the format that a folder is in; "" when no format knows it."""
    try:
        if not folder.is_dir():
            return ""
    except (OSError, ValueError):  # a name no file system takes
        return ""
    return next((e.name for e in registry.entries("format") if make(e.name).recognise(folder)), "")


def make(name: str) -> CheckpointFormat:
    entry = registry.find("format", name)
    made: CheckpointFormat = entry.build(entry.config())
    return made


def describe(folder: Path, name: str) -> Described:
    return make(name).describe(folder)


def layered(base: Node | None, told: Described) -> Node:
    """What the folder says, over the preset it is nearest to."""
    tree = base
    for file, sections in told.layers:
        tree = lay(tree, _tree(sections, file))
    if tree is None:
        raise PresetError("says nothing about a model")
    return tree


def corrected(tree: Node, preset: Preset, told: Described, shipped: set[str]) -> Node:
    """A preset's tree with the numbers of its weights' own folder. What the user set (in a file that is not shipped,
    or in a word) stays, and so does a section whose part was swapped.
    """
    for file, sections in told.layers:
        for name in FACTS:
            use = getattr(preset, name).use
            if name not in sections or sections[name].get("use", use) != use:
                continue
            kept = {path for path, node in walk(tree.value.get(name, Node({}, ""))) if _own(node, shipped)}
            tree = lay(tree, _without(_tree({name: sections[name]}, file), {(name, *path) for path in kept}))
    return tree


def _own(node: Node, shipped: set[str]) -> bool:
    return not isinstance(node.value, dict) and node.place.partition(":")[0] not in shipped


def _without(tree: Node, paths: set[tuple[Any, ...]], at: tuple[Any, ...] = ()) -> Node:
    if not isinstance(tree.value, dict):
        return tree
    return Node({k: _without(child, paths, (*at, k)) for k, child in tree.value.items() if (*at, k) not in paths},
                tree.place)


def _tree(value: Any, place: str) -> Node:
    if isinstance(value, dict):
        return Node({key: _tree(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([_tree(child, place) for child in value], place)
    return Node(value, place)
