"""`${a.b}` and `${.sibling}`: measured first, then resolved once, by OmegaConf, on the whole tree.

Resolvers are refused, so a preset means the same thing on every machine and cannot read its environment.
"""

from __future__ import annotations

import re
from typing import Any

from vlmkit.errors import PresetError, PresetSafetyError
from vlmkit.limits import current

from .nodes import Node, Path, children, dotted, plain, too_much

_NAME = r"[A-Za-z_][\w-]*|[0-9]+"
_REFERENCE = re.compile(rf"\$\{{(?P<up>\.*)(?P<path>(?:{_NAME})(?:\.(?:{_NAME})|\[[0-9]+\])*)\}}", re.ASCII)


def resolve(tree: Node) -> Any:
    """Plain values, every reference replaced by what it points at."""
    if not _Measure(tree).all():
        return plain(tree)
    from omegaconf import OmegaConf, errors  # only the few presets with references pay for it

    try:
        return OmegaConf.to_container(OmegaConf.create(plain(tree)), resolve=True)
    except errors.OmegaConfBaseException as error:
        raise PresetError(f"references: {error.msg}", where=error.full_key or "") from None


class _Measure:
    """Follows every reference on paper: circles, loose ends and doublings are refused before anything grows."""

    def __init__(self, tree: Node) -> None:
        self.tree, self.sizes, self.open = tree, dict[Path, tuple[int, int]](), list[Path]()
        self.references, self.limits = 0, current()

    def all(self) -> int:
        """How many references there are."""
        self.size((), self.tree)
        return self.references

    def size(self, path: Path, node: Node) -> tuple[int, int]:
        """How many values, and how many characters, stand here once it is resolved."""
        if path in self.sizes:
            return self.sizes[path]
        if path in self.open:
            circle = " -> ".join(dotted(p) or "the whole preset" for p in (*self.open[self.open.index(path) :], path))
            raise PresetSafetyError(f"references run in a circle: {circle}", where=node.place)
        self.open.append(path)
        if isinstance(node.value, str):
            nodes, text = self.text(path, node)
        else:
            sizes = [self.size((*path, key), child) for key, child in children(node)]
            nodes, text = 1 + sum(n for n, _ in sizes), sum(t for _, t in sizes)
        self.open.pop()
        self.check(nodes, "preset_max_nodes", node)
        self.sizes[path] = nodes, text
        return nodes, text

    def text(self, path: Path, node: Node) -> tuple[int, int]:
        """A scalar, with the references inside it."""
        found = list(_REFERENCE.finditer(node.value))
        left = _REFERENCE.sub("", node.value)
        if "${" in left or (found and "\\" in left):
            self.refuse(node)
        self.references += len(found)
        targets = [self.target(path, node, m) for m in found]
        if left and any(isinstance(target.value, dict | list) for _, target in targets):
            raise PresetError(f"a section cannot stand inside a text: {node.value[:80]!r}", where=node.place)
        sizes = [self.size(*target) for target in targets]
        nodes, text = 1 + sum(n for n, _ in sizes), len(left) + sum(t for _, t in sizes)
        if found:
            self.check(text, "preset_max_scalar", node)
        return nodes, text

    def target(self, path: Path, node: Node, found: re.Match[str]) -> tuple[Path, Node]:
        """Where a reference points; leading dots count upwards from the section it stands in."""
        steps = re.findall(_NAME, found["path"], re.ASCII)
        up = len(found["up"])
        if up > len(path):
            raise PresetError(f"{found[0]} points above the preset", where=node.place)
        start: Path = path[: len(path) - up] if up else ()
        here = self.at(start)
        for step in steps:
            key: str | int = int(step) if isinstance(here.value, list) and step.isdigit() else step
            below = dict(children(here))
            if key not in below:
                what = f"{dotted(path)}: {found[0]} points at nothing; there is no {dotted((*start, key))}"
                raise PresetError(what, where=node.place)
            here, start = below[key], (*start, key)
        return start, here

    def at(self, path: Path) -> Node:
        node = self.tree
        for key in path:
            node = node.value[key]
        return node

    def check(self, got: int, field: str, node: Node) -> None:
        if got > getattr(self.limits, field):
            too_much("references grow too large", node.place, field, got)

    def refuse(self, node: Node) -> None:
        what = f"only references such as ${{tower.model}} are read, got {node.value[:80]!r}"
        hint = "resolvers, the environment and nested references are refused"
        raise PresetSafetyError(what, where=node.place, hint=hint)
