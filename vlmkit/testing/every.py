"""Checks for parts of every kind: what is read, listed and bound before anything is computed."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from .. import plugins
from ..compose.bind import held
from ..contracts import PartConfig
from .outcomes import Skipped, promise, want

HEAVY = ("torch", "timm", "transformers", "av", "PIL", "numpy", "tokenizers", "omegaconf", "datasets")
LONGEST = 200  # characters of a summary, which is a line of a table
_LIGHT = """
import importlib, json, sys
from vlmkit.plugins import Manager
manager = Manager()
manager.accept(importlib.import_module(sys.argv[1]), sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@promise()
def module_is_found(case: Any) -> None:
    """The module that the hook names as text can be imported, and holds Config, build and EXAMPLE."""
    entry = case.entry
    want(issubclass(entry.config, PartConfig) and callable(entry.build), "no Config or build")
    want(isinstance(entry.example, dict), f"EXAMPLE is a mapping of fields, got {type(entry.example).__name__}")


@promise()
def says_what_it_is(case: Any) -> None:
    """The module's docstring begins with one line that lists can show."""
    summary = case.entry.summary
    want(0 < len(summary) <= LONGEST, f"expected a line of 1 to {LONGEST} characters, got {len(summary)}")


@promise()
def entry_is_light(case: Any) -> None:
    """Importing the plugin and asking its hooks imports nothing that computes."""
    plugin = plugins.default().get_plugin(case.entry.plugin)
    home = getattr(plugin, "__name__", "") or case.entry.module.rpartition(".")[0]
    if not home:
        raise Skipped("it was not offered by a module")
    modules = _asked(home, os.pathsep.join(sys.path))
    want(not (heavy := [name for name in HEAVY if name in modules]), f"{home} imports {', '.join(heavy)}")


@functools.cache
def _asked(home: str, path: str) -> list[str]:
    """The modules that a fresh process ends with."""
    env = {**os.environ, "PYTHONPATH": path, "VLMKIT_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", _LIGHT, home], env=env, capture_output=True, text=True, check=False,
                          timeout=60)
    want(done.returncode == 0, done.stderr.strip().rpartition("\n")[2])
    modules: list[str] = json.loads(done.stdout)
    return modules


@promise()
def fields_are_strict(case: Any) -> None:
    """An unknown field is refused, and a bound config cannot be changed."""
    config = case.config
    rules = type(config).model_config
    want(rules.get("extra") == "forbid" and rules.get("strict"), "model_config was loosened")
    want(rules.get("frozen"), "a bound config can be changed")


@promise()
def fields_have_a_schema(case: Any) -> None:
    """Editors get a JSON Schema of its fields."""
    json.dumps(case.entry.config.model_json_schema())


@promise()
def fields_are_described(case: Any) -> None:
    """Config has a docstring, and each field a description, those of sections inside, too."""
    config = case.entry.config
    want((config.__doc__ or "") not in ("", PartConfig.__doc__), "Config has no docstring")
    bare = list(_undescribed(config))
    want(not bare, f"no description: {', '.join(bare)}")


def _undescribed(config: type[BaseModel]) -> Iterator[str]:
    for name, field in config.model_fields.items():
        if name != "use" and not (field.description or "").strip():
            yield name
        inner = held((field.annotation, *field.metadata))
        if isinstance(inner, type):
            yield from (f"{name}.{deeper}" for deeper in _undescribed(inner))


@promise()
def example_binds(case: Any) -> None:
    """EXAMPLE is a section as a preset would hold it: plain data, every field known and in range."""
    example = case.entry.example
    want(json.loads(json.dumps(example)) == json.loads(json.dumps(example, default=str)), "EXAMPLE is not plain data")
    before = copy.deepcopy(example)
    want(case.config.use == case.entry.name, "`use` is not filled in")
    want(case.entry.example == before, "binding it changed EXAMPLE")


@promise()
def config_comes_back(case: Any) -> None:
    """What is saved beside weights reads back equal, so a checkpoint says what it was."""
    config = case.config
    said = config.model_dump(mode="json", by_alias=True, serialize_as_any=True)
    try:
        from ..compose.bind import bind_part

        again = bind_part(case.entry, {k: v for k, v in said.items() if k != "use"})
    except (ValidationError, TypeError) as error:
        want(False, f"its own dump is refused: {error}")
    want(again == config, f"{said} reads back as {again}")


@promise()
def config_travels(case: Any) -> None:
    """A config goes to another process and back, as data workers need it."""
    want(pickle.loads(pickle.dumps(case.config)) == case.config, "it comes back as another one")


@promise()
def name_is_usable(case: Any) -> None:
    """Its name can stand in YAML and on a command line without quotes."""
    want(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", case.entry.name), f"{case.entry.name!r} cannot")
    want(case.entry.name.lower() not in ("null", "true", "false", "yes", "no", "on", "off"), "YAML reads another thing")
