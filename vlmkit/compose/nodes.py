"""YAML text -> a tree whose every value remembers where it stood. Nothing is believed before it is counted.

The subset is plain data: mappings, lists, text, numbers, true, false, null and aliases. Tags, second documents,
duplicate keys, and words or numbers that YAML 1.1 and 1.2 read differently are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import yaml

from vlmkit.errors import PresetError, PresetSafetyError, PresetSyntaxError
from vlmkit.limits import current

Path = tuple[str | int, ...]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it, is 17 times as fast

_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
          "false": False, "False": False, "FALSE": False}  # fmt: skip
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,3})?")
_AMBIGUOUS = re.compile(
    r"(?i:y|n|yes|no|on|off)"  # truth or text
    r"|[-+]?0[0-9_]+(\.[0-9_]*)?|[-+]?0[xob][0-9a-f_]+"  # octal, hexadecimal, binary or decimal
    r"|[-+]?[0-9][0-9_]*_[0-9_.]*|[-+]?[0-9]{19,}"  # digits in groups; more than 64 bits
    r"|[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"  # base 60
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?|=|<<"  # a date, the value key, the merge key
)
_ENDLESS = re.compile(r"[-+]?\.?(?i:inf|infinity|nan)")


class Node(NamedTuple):
    """A value and where it was set: `deep.yaml:4`, or `command line`."""

    value: Any  # dict[str, Node], list[Node] or a scalar
    place: str


def plain(node: Node) -> Any:
    """The values alone."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def children(node: Node) -> Iterable[tuple[str | int, Node]]:
    """What stands inside, by key or by number."""
    if isinstance(node.value, dict):
        return node.value.items()
    return enumerate(node.value) if isinstance(node.value, list) else ()


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """The node and everything below it."""
    yield path, node
    for key, child in children(node):
        yield from walk(child, (*path, key))


def dotted(path: Path) -> str:
    """('tower', 'towers', 1, 'model') -> tower.towers[1].model"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def too_much(what: str, where: object, field: str, got: int) -> NoReturn:
    """Over a limit, which the message names."""
    setting = field.replace("_", ".", 1)
    raise PresetSafetyError(what, where=where, limit=getattr(current(), field), got=got, setting=setting)


def parse(text: str, source: str, line: bool = True) -> Node:
    """One YAML document. `source` is the file's name; without `line` it is the whole place."""
    if (size := len(text.encode("utf-8", "surrogatepass"))) > current().preset_max_bytes:
        too_much("too long", source, "preset_max_bytes", size)
    with suppress(yaml.YAMLError, UnicodeError):
        return _Reader(text, source, line, LOADER).document()
    try:
        return _Reader(text, source, line, yaml.SafeLoader).document()  # which tells best what is wrong, and where
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark and line else source
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise PresetSyntaxError(f"not YAML: {what}", where=where) from None


class _Reader:
    """Turns PyYAML's events into nodes. Events come one by one, so a bomb is refused long before it is built."""

    def __init__(self, text: str, source: str, line: bool, loader: Any) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=loader)
        self.source, self.line, self.limits = source, line, current()
        self.anchors: dict[str, tuple[Node, int] | None] = {}  # None while it is open
        self.nodes = 0

    def document(self) -> Node:
        next(self.events)  # start of the stream
        first = next(self.events)
        if isinstance(first, yaml.StreamEndEvent):
            return Node({}, self.place(first))
        node = self.node(next(self.events), 1)
        next(self.events)
        if not isinstance(after := next(self.events), yaml.StreamEndEvent):
            self.refuse(PresetSyntaxError, after, "a second document; a preset is one")
        return node

    def node(self, event: Any, depth: int, place: str = "") -> Node:
        place = place or self.place(event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag is not None:
            self.refuse(PresetSafetyError, event, f"the tag {event.tag!r}; presets are plain data")
        self.count(event, 1)
        before = self.nodes
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event), place)
        else:
            if depth > self.limits.preset_max_depth:
                too_much("nested too deep", place, "preset_max_depth", depth)
            make = self.mapping if isinstance(event, yaml.MappingStartEvent) else self.sequence
            node = Node(make(depth), place)
        if event.anchor:
            self.anchors[event.anchor] = node, self.nodes - before + 1
        return node

    def mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                self.refuse(PresetSyntaxError, event, "a key must be a word")
            key, place = str(event.value), self.place(event)
            self.scalar(event)
            if key in found:
                self.refuse(PresetSyntaxError, event, f"the key {key!r} stands twice, first at {found[key].place}")
            if key.startswith("_") and key.endswith("_"):
                self.refuse(PresetSafetyError, event, f"the key {key!r}; a preset chooses parts by `use`, never code")
            found[key] = self.node(next(self.events), depth + 1, place)
        return found

    def sequence(self, depth: int) -> list[Node]:
        found = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, depth + 1))
        return found

    def alias(self, event: Any) -> Node:
        known = self.anchors.get(event.anchor, ...)
        if known is ...:
            self.refuse(PresetSyntaxError, event, f"the alias *{event.anchor} has no anchor before it")
        if known is None:
            self.refuse(PresetSafetyError, event, f"the alias *{event.anchor} contains itself")
        node, size = known
        self.count(event, size)
        return node

    def scalar(self, event: Any) -> Any:
        text = event.value
        if len(text) > self.limits.preset_max_scalar:
            too_much("a text too long", self.place(event), "preset_max_scalar", len(text))
        return text if event.style else self.read(text, event)

    def read(self, text: str, event: Any) -> Any:
        """A word without quotes."""
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _AMBIGUOUS.fullmatch(text):
            hint = "write true or false, a plain number, or put it in quotes"
            self.refuse(PresetSyntaxError, event, f"{text[:80]!r} means different things to different readers", hint)
        number = float(text) if _NUMBER.fullmatch(text) else None
        if _ENDLESS.fullmatch(text) or (number is not None and abs(number) == float("inf")):
            self.refuse(PresetSyntaxError, event, f"{text[:80]!r} is not a finite number", "put text in quotes")
        return text if number is None else number

    def count(self, event: Any, more: int) -> None:
        self.nodes += more
        if self.nodes > self.limits.preset_max_nodes:
            too_much("too many values, each alias in full", self.place(event), "preset_max_nodes", self.nodes)

    def refuse(self, kind: type[PresetError], event: Any, what: str, hint: str = "") -> NoReturn:
        raise kind(what, where=self.place(event), hint=hint)

    def place(self, event: Any) -> str:
        return f"{self.source}:{event.start_mark.line + 1}" if self.line else self.source


