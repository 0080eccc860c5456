"""A preset file and all it extends -> one tree. Inheritance stays in its own folder or an installed package."""

from __future__ import annotations

import os
from pathlib import Path

from vlmkit import registry
from vlmkit.errors import PresetError, PresetSafetyError, PresetSyntaxError
from vlmkit.limits import current

from . import folder as strangers
from .find import Found, every, find, installed, within
from .merge import lay
from .nodes import Node, parse, too_much

MACHINE = ("data", "exam", "machine", "out")  # sections of a run, whose paths belong to a machine


def read(name: str) -> Node:
    """The named preset, over everything it extends, its `name` filled in; or what a folder of weights says it is."""
    try:
        found = find(name)
    except PresetError:
        if kind := strangers.format_of(path := Path(os.path.expanduser(name))):
            told = strangers.describe(path, kind)
            if not told.base:
                raise strangers.only(told, path) from None
            return strangers.layered(read(told.base), told)
        if os.path.isfile(path / "config.json"):
            raise PresetError("is a folder of weights in no layout that vlmkit knows", where=path,
                              hint=f"it reads: {', '.join(registry.names('format'))}") from None
        raise
    tree = _Files().read(found, ())
    tree.value.setdefault("name", Node(found.name, str(found.path.name)))
    return tree


class _Files:
    """The files of one preset, counted."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, found: Found, above: tuple[Path, ...]) -> Node:
        """`above` are the files that led here, which may not come again."""
        limits, path = current(), found.path.resolve()
        if path in above:
            circle = " -> ".join(p.name for p in (*above[above.index(path) :], path))
            raise PresetSafetyError(f"extends itself: {circle}", where=found.path)
        self.count += 1
        if len(above) > limits.preset_max_extends:
            too_much("extends too many levels", found.path, "preset_max_extends", len(above))
        if self.count > limits.preset_max_files:
            too_much("extends too many files", found.path, "preset_max_files", self.count)
        tree = _open(found)
        below: Node | None = None
        for place, base in _extends(tree):
            layer = self.read(_base(base, found, place), (*above, path))
            layer.value.pop("name", None)
            below = lay(below, layer)
        return lay(below, tree)


def _open(found: Found) -> Node:
    """One file as a tree, paths beside it made whole."""
    if (size := found.path.stat().st_size) > current().preset_max_bytes:
        too_much("too long", found.path, "preset_max_bytes", size)
    try:
        text = found.path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PresetSyntaxError(f"not UTF-8 at byte {error.start}", where=found.path) from None
    except OSError as error:
        raise PresetError(error.strerror or "cannot be read", where=found.path) from None
    tree = parse(text, _label(found))
    if not isinstance(tree.value, dict):
        raise PresetSyntaxError("a preset is a mapping of sections", where=tree.place)
    return _beside(tree, found.path.parent)


def _label(found: Found) -> str:
    """A file's name; the whole path, where an installed one has the same name and is not it."""
    name = found.path.name
    clash = not found.installed and any(one.installed and one.path.name == name for one in every())
    return str(found.path) if clash else name


def _extends(tree: Node) -> list[tuple[str, str]]:
    """The names under `extends` and where they stand; takes them out of the tree."""
    said = tree.value.pop("extends", Node([], tree.place))
    items = said.value if isinstance(said.value, list) else [said]
    for item in items:
        if not isinstance(item.value, str):
            raise PresetSyntaxError(f"extends takes names, got {item.value!r}", where=item.place)
    return [(item.place, item.value) for item in items]


def _base(name: str, child: Found, place: str) -> Found:
    """What `extends` may reach: files under the preset's own folder, then installed ones, and never itself."""
    if "${" in name or name.startswith(("/", "~")) or ".." in Path(name).parts:
        what = f"extends {name[:80]!r}: only names inside this folder or an installed package"
        raise PresetSafetyError(what, where=place)
    own = child.path.resolve()
    roots = [(child.owner, folder) for folder in dict.fromkeys((child.path.parent, child.folder))] + installed()
    itself = False
    for owner, folder in roots:
        found = within(folder, name.removeprefix("./").removesuffix(".yaml"), owner)
        if found is None:
            continue
        if not found.installed and not found.path.resolve().is_relative_to(folder.resolve()):
            raise PresetSafetyError(f"extends {name[:80]!r}, a link that leads out of its folder", where=place)
        if found.path.resolve() != own:
            return found
        itself = True
    if itself:
        raise PresetSafetyError("extends itself", where=place)
    try:
        outside = f"; {find(name).path} lies outside"
    except PresetError as error:
        outside = f"; {error.hint}" if error.hint else ""
    raise PresetError(f"extends {name[:80]!r}, which is neither in its own folder nor installed{outside}", where=place)


def _beside(node: Node, folder: Path, key: str | int = "") -> Node:
    """`from: .` and `file: chat.jinja` name things beside the preset; a `file` lies nowhere else."""
    if isinstance(node.value, dict):
        inside = {k: child if k in MACHINE else _beside(child, folder, k) for k, child in node.value.items()}
        return Node(inside, node.place)
    if isinstance(node.value, list):
        return Node([_beside(child, folder) for child in node.value], node.place)
    if key not in ("from", "file") or not isinstance(node.value, str):
        return node
    if key == "from" and not (node.value + "/").startswith("./"):
        return node  # a name on the hub, or a path on this machine
    path = folder.resolve() / node.value
    if ".." in Path(node.value).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise PresetSafetyError(f"{node.value[:80]!r} leads out of the preset's folder", where=node.place)
    return Node(str(path), node.place)
