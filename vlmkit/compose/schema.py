"""A JSON Schema of presets, runs and studies, for editors.   python -m vlmkit.compose.schema > presets/schema.json

Nothing is required in it, because a preset may extend another; a reference may stand for every value.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel

from vlmkit import registry
from vlmkit.contracts import PartOf
from vlmkit.plugins import Manager, make_manager

from .bind import held
from .study import Study

REFERENCE = {"type": "string", "pattern": r"\$\{[^}:]+\}"}


def schema(manager: Manager | None = None) -> dict[str, Any]:
    """The schema of a preset that may choose among the parts of a manager; the built-in ones by default."""
    defs: dict[str, Any] = {"reference": REFERENCE}
    body = _Writer(manager or make_manager(entry_points=False), defs).section(Study)
    names = {"type": "string", "description": "a preset beside this one, or an installed one"}
    body["properties"]["extends"] = {"anyOf": [names, {"type": "array", "items": names}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vlmkit preset", **body, "$defs": defs}


class _Writer:
    def __init__(self, manager: Manager, defs: dict[str, Any]) -> None:
        self.manager, self.defs = manager, defs

    def section(self, cls: type[BaseModel]) -> dict[str, Any]:
        """One class: its leaves as pydantic tells them, its parts and sections as references."""
        told = cls.model_json_schema()
        properties = {}
        for name, field in cls.model_fields.items():
            key = field.alias or name
            inner = held((field.annotation, *field.metadata))
            leaf = {k: v for k, v in told["properties"][key].items() if k not in ("title", "default")}
            properties[key] = _open(leaf) if inner is None else self.inner(inner, "array" in json.dumps(leaf))
            if inner is None:  # it may name words, or be a mapping of sections
                self.defs |= _named(leaf, told.get("$defs", {}))
            elif field.description:
                properties[key]["description"] = field.description
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def inner(self, inner: PartOf | type[BaseModel], several: bool) -> dict[str, Any]:
        """A part or a section, or a list of them; `null` removes what a lower layer said."""
        one = {"$ref": f"#/$defs/{self.kind(inner.kind) if isinstance(inner, PartOf) else self.named(inner)}"}
        if several:
            one = {"type": "array", "items": one}  # type: ignore[dict-item]
        return {"anyOf": [one, {"type": "null"}, {"$ref": "#/$defs/reference"}]}

    def named(self, cls: type[BaseModel]) -> str:
        if cls.__name__ not in self.defs:
            self.defs[cls.__name__] = {}
            self.defs[cls.__name__] |= self.section(cls)
        return cls.__name__

    def kind(self, kind: str) -> str:
        """The name of a part, or a section whose fields follow from `use`."""
        if kind not in self.defs:
            self.defs[kind] = {}
            entries = registry.entries(kind, self.manager)
            use = {"enum": [entry.name for entry in entries]}
            fields = []
            for entry in entries:
                self.defs[f"{kind}.{entry.name}"] = {"description": entry.summary, **self.section(entry.config)}
                chosen = {"properties": {"use": {"const": entry.name}}, "required": ["use"]}
                fields.append({"if": chosen, "then": {"$ref": f"#/$defs/{kind}.{entry.name}"}})
            whole = {"type": "object", "properties": {"use": use}, "allOf": fields}
            self.defs[kind] |= {"anyOf": [use, whole]}
        return kind


def _named(leaf: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """The definitions of pydantic's that a leaf names, and those they name."""
    names = re.findall(r'"#/\$defs/(\w+)"', json.dumps(leaf))
    return {k: v for name in names for k, v in [(name, defs[name]), *_named(defs[name], defs).items()]}


def _open(leaf: dict[str, Any]) -> dict[str, Any]:
    """A leaf, or a reference in its place; inside lists and mappings too."""
    leaf = dict(leaf)
    description = {"description": leaf.pop("description")} if "description" in leaf else {}
    if "anyOf" in leaf:
        leaf["anyOf"] = [_open(arm) for arm in leaf["anyOf"]]
    for key in ("items", "additionalProperties"):
        if isinstance(leaf.get(key), dict):
            leaf[key] = _open(leaf[key])
    if "prefixItems" in leaf:
        leaf["prefixItems"] = [_open(item) for item in leaf["prefixItems"]]
    return {"anyOf": [leaf, {"$ref": "#/$defs/reference"}], **description}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1, sort_keys=True))
