"""A folder of weights in somebody else's layout -> the tree of a preset, each value with the file that says it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from vlmkit import registry
from vlmkit.contracts import CheckpointFormat
from vlmkit.errors import PresetError
from vlmkit.types import Described, reach

from .merge import lay
from .nodes import Node, walk
from .preset import Preset

FACTS = ("tower", "projector", "decoder", "image.tower", "video.tower")  # whose numbers belong to the weights
NAMED = ("size", "model")  # fields that stand for many numbers


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


def layered(base: Node, told: Described) -> Node:
    """What the folder says, over the preset it is nearest to."""
    for file, sections in told.layers:
        base = lay(base, _tree(sections, file))
    return base


def corrected(tree: Node, preset: Preset, told: Described, shipped: set[str], into: Collection[str] = ()) -> Node:
    """A preset's tree with the numbers of its weights' own folder, in the sections that it fills.

    What the user set, in a file that is not shipped or in a word, stays. So does a section whose part was swapped, or
    whose size or model the user named.
    """
    layers = [(file, _tree(sections, file)) for file, sections in told.layers]
    for path in (tuple(name.split(".")) for name in into or FACTS):
        facts = [(file, _at(layer, path) or (into and _at(layer, path[-1:]))) for file, layer in layers]
        said = [(file, node) for file, node in facts if node]
        uses = {node.value["use"].value for _, node in said if "use" in node.value}
        kept = {(*path, *inner) for inner, node in walk(_at(tree, path) or Node({}, "")) if _own(node, shipped)}
        named = any((*path, field) in kept for field in NAMED)
        if path[-1] not in FACTS or uses != {getattr(reach(preset, ".".join(path)), "use", "")} or named:
            continue
        for file, node in said:
            for name in reversed(path):
                node = Node({name: node}, file)
            tree = lay(tree, _without(node, kept))
    return tree


def only(told: Described, path: Path) -> PresetError:
    """A folder that is one part of a model, asked for as a whole one."""
    section = next(iter(told.layers[0][1]))
    kind = format_of(path)
    line = f"weights=[{{from: {path.resolve()}, format: {kind}, into: [{section}]}}]"
    return PresetError(f"is a {section} only, no vision-language model", where=path,
                       hint=f"take a preset and let it fill that section: {line}")


def _at(tree: Node, path: tuple[str, ...]) -> Node | None:
    """The section at a path; a bare word is the part's name."""
    for name in path:
        found = tree.value.get(name) if isinstance(tree.value, dict) else None
        if found is None or found.value is None:
            return None
        tree = found
    return Node({"use": tree}, tree.place) if isinstance(tree.value, str) else tree


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
