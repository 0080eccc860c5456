"""Merged tree -> typed preset. Every part is found and checked; every problem is gathered, then told at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import NoneType
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from vlmkit import plugins, registry
from vlmkit.contracts import PartConfig, PartOf
from vlmkit.errors import PluginError, PresetValueError, Problem, tell

from .merge import is_word, lay, set_words
from .nodes import Node, Path, dotted, parse, plain, walk
from .preset import Places, Preset, Run
from .read import read
from .references import resolve
from .say import complaints, shown
from .study import Study

S = TypeVar("S", bound=BaseModel)


class Source(NamedTuple):
    """A value of a bound preset and where it was set; `default` when no layer said it."""

    value: Any
    place: str


def compose(name: str | os.PathLike[str] | Preset, *words: str) -> Preset:
    """A preset by name or path, or one bound before; further presets laid over it, then `key=value` words."""
    tree = unbind(name) if isinstance(name, Preset) else read(os.fspath(name))
    for layer in (read(word) for word in words if not is_word(word)):
        layer.value.pop("name", None)
        tree = lay(tree, layer)
    return bind(set_words(tree, [word for word in words if is_word(word)]))


def bind(tree: Node) -> Preset:
    """A merged tree as a preset; raises `PresetValueError` with all its problems."""
    data, nodes = resolve(tree), dict(walk(tree))
    walker = _Walk(nodes)
    kind = Study if "vary" in data else Run if "train" in data else Preset
    preset = cast(Preset | None, walker.section(kind, data, ()))
    if preset is not None and preset.image is None and preset.video is None:
        walker.problem((), "nothing to look at; add an `image` or a `video` section")
    if walker.problems or preset is None:
        title = f"preset {data.get('name', '')}"
        hint = "" if data.keys() & {"tower", "decoder"} else "it names no model; put a preset before it"
        raise PresetValueError(tell(title, walker.problems), problems=tuple(walker.problems), hint=hint)
    preset._places.update(_places(preset, nodes))
    preset._places.tree = tree
    return preset


def bind_part(entry: registry.Entry, data: dict[str, Any]) -> PartConfig:
    """One part's section by itself; raises `PresetValueError` with all its problems."""
    name = f"{entry.kind} {entry.name}"
    return bind_section(entry.config, parse(json.dumps({**data, "use": entry.name}), name, line=False), name)


def bind_section(kind: type[S], tree: Node, title: str) -> S:
    """A tree as one section by itself, such as what a command says about data."""
    walker = _Walk(dict(walk(tree)))
    made = walker.section(kind, plain(tree), ())
    if walker.problems or made is None:
        raise PresetValueError(tell(title, walker.problems), problems=tuple(walker.problems))
    return cast(S, made)


def unbind(preset: Preset) -> Node:
    """The layers a preset came from; if it was changed since, what it says now."""
    if preset._places.tree is not None and bind(preset._places.tree) == preset:
        return cast(Node, preset._places.tree)
    return parse(json.dumps(preset.dump()), f"preset {preset.name}", line=False)


def sources(preset: Preset) -> dict[str, Source]:
    """Path -> value and place, for every field down to the last default."""
    leaves = {dotted(path): value for path, value in _leaves(preset.dump(), ())}
    return {path: Source(value, preset._places.get(path, "default")) for path, value in leaves.items()}


class _Walk:
    """One walk over the merged tree."""

    def __init__(self, nodes: dict[Path, Node]) -> None:
        self.nodes, self.problems = nodes, list[Problem]()
        packages = plugins.default().packages
        self.here = {word.lower() for name, package in packages.items() for word in (name, package.split()[0])}
        self.missing: list[str] = []

    def section(self, cls: type[BaseModel], data: Any, path: Path) -> BaseModel | None:
        """The fields of one class: parts and sections inside first, then the class itself."""
        if not isinstance(data, dict):
            self.problem(path, f"expected a section of fields, got {shown(data)}")
            return None
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        data = dict(data) if issubclass(cls, PartConfig) else {k: v for k, v in data.items() if v is not None}
        if issubclass(cls, Preset):
            self.needs(data.get("needs"))
        for key in [key for key in data if key not in fields]:
            del data[key]
            said = [name for name in fields if name != "use"]
            who = path[-1] if path and isinstance(path[-1], str) else "a preset"
            owner = data.get("use", who) if isinstance(data.get("use", who), str) else who
            self.problem((*path, key), f"no such field; {owner} has: {', '.join(said) or 'no fields'}"
                         + registry.nearest(key, said))  # fmt: skip
        bound: dict[str, Any] = {}
        failed: set[str] = set()
        for key, field in fields.items():
            inner = held((field.annotation, *field.metadata))
            if inner is None or data.get(key) is None:
                if inner is not None and field.is_required():
                    failed.add(key)
                    self.problem((*path, key), "is missing" + self.choice(inner))
                continue
            made = self.inner(inner, data[key], (*path, key))
            if made is None:
                failed.add(key)
            else:
                bound[key], data[key] = made, _stand_in(made)
        return self.validate(cls, data, path, bound, failed)

    def inner(self, inner: PartOf | type[BaseModel], data: Any, path: Path) -> Any:
        """A part, a section, or a list of either."""
        if isinstance(data, list):
            made = [self.inner(inner, item, (*path, i)) for i, item in enumerate(data)]
            return None if any(item is None for item in made) else made
        return self.part(inner.kind, data, path) if isinstance(inner, PartOf) else self.section(inner, data, path)

    def part(self, kind: str, data: Any, path: Path) -> PartConfig | None:
        """A section that names a part, bound with that part's own class."""
        data = {"use": data} if isinstance(data, str) else data
        if not isinstance(data, dict):
            self.problem(path, f"expected a {kind}, got {shown(data)}")
            return None
        name = data.get("use")
        if not isinstance(name, str):
            said = "names no part; add `use`" if name is None else f"expected the name of a {kind}, got {shown(name)}"
            self.problem((*path, "use"), said + self.choice(PartOf(kind)))
            return None
        try:
            return self.section(registry.find(kind, name).config, data, path)  # type: ignore[return-value]
        except PluginError as error:
            lost = "".join(f"; plugin {need} is not installed" for need in self.missing)
            self.problem((*path, "use"), f"{error.where}: {error.what}{lost}".removeprefix(": "))
            return None

    def validate(self, cls: type[BaseModel], data: dict[str, Any], path: Path, bound: dict[str, Any],
                 failed: set[str]) -> BaseModel | None:  # fmt: skip
        """Strict, but as JSON is: lists are tuples, text is no number, truth is no number."""
        model = None
        try:
            model = cls.model_validate_json(json.dumps({k: v for k, v in data.items() if k not in failed}))
        except ValidationError as error:
            for loc, what in complaints(error.errors(include_url=False, include_context=True), data):
                if not loc or loc[0] not in failed:
                    self.problem((*path, *loc), what)
        if model is None or failed:
            return None
        names = {field.alias or name: name for name, field in cls.model_fields.items()}
        kept = {names[key]: type(getattr(model, names[key]))(made) if isinstance(made, list) else made
                for key, made in bound.items()}  # fmt: skip
        return model.model_copy(update=kept)

    def needs(self, names: Any) -> None:
        """Plugin packages the preset relies on."""
        for i, name in enumerate(names if isinstance(names, list) else ()):
            if isinstance(name, str) and name.lower() not in self.here:
                self.missing.append(name)
                self.problem(("needs", i), f"plugin {name} is not installed")

    def choice(self, inner: Any) -> str:
        return f"; there are: {', '.join(registry.names(inner.kind)) or 'none'}" if isinstance(inner, PartOf) else ""

    def problem(self, path: Path, what: str) -> None:
        near = next(self.nodes[path[:i]] for i in range(len(path), -1, -1) if path[:i] in self.nodes)
        self.problems.append(Problem(dotted(path) or "preset", near.place, what))


def held(annotation: Any) -> PartOf | type[BaseModel] | None:
    """What a field holds that must be bound by itself: a part, or a section; a list of them counts."""
    if isinstance(annotation, PartOf):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not PartConfig:
        return annotation
    if get_origin(annotation) is dict:  # names of its own: pydantic reads it
        return None
    inner = [held(arg) for arg in (annotation if isinstance(annotation, tuple) else _arguments(annotation))]
    found = list(dict.fromkeys(one for one in inner if one is not None))
    return found[0] if len(found) == 1 else None


def _arguments(annotation: Any) -> tuple[Any, ...]:
    arguments = [arg for arg in get_args(annotation) if arg not in (NoneType, ...)]
    return (*arguments, *getattr(annotation, "__metadata__", ()))


def _stand_in(made: Any) -> Any:
    """What a bound value looks like to the class that holds it."""
    if isinstance(made, list | tuple):
        return [_stand_in(item) for item in made]
    if isinstance(made, dict):
        return {key: _stand_in(value) for key, value in made.items()}
    if isinstance(made, PartConfig):
        return {"use": made.use}
    if isinstance(made, BaseModel):
        fields = {name: field.alias or name for name, field in type(made).model_fields.items()}
        return {fields[name]: _stand_in(getattr(made, name)) for name in made.model_fields_set}
    return made


def _leaves(data: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every value that holds no other; a list of plain values is one."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        for i, item in enumerate(data):
            yield from _leaves(item, (*path, i))
    else:
        yield path, data


def _places(preset: Preset, nodes: dict[Path, Node]) -> Places:
    """Where each leaf and each section was set; what a word or a reference stands for was set where it stands."""
    places = Places({dotted(path): node.place for path, node in nodes.items() if isinstance(node.value, dict)})
    for path, _ in _leaves(preset.dump(), ()):
        near = next(nodes[path[:i]] for i in range(len(path), -1, -1) if path[:i] in nodes)
        if path in nodes or isinstance(near.value, str):
            places[dotted(path)] = near.place
    return places
