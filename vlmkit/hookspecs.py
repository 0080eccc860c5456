"""The three hooks of a plugin, and the record it offers parts with. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

PROJECT = "vlmkit"  # also the entry-point group
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

API = 1  # a plugin that names another number (`vlmkit_api = 2`) was written for another vlmkit; no hook of it is called

KINDS = ("tower", "projector", "packer", "decoder", "chat", "tiler", "sampler", "attention", "format", "dataset",
         "metric")


class Part(NamedTuple):
    """An entry a plugin offers: a kind, a name, and the module that holds it (text until it is used).

    instead  for a part that will go: the name of the one to use
    """

    kind: str
    name: str
    module: str
    instead: str = ""


@hookspec
def vlmkit_parts() -> Iterable[Part]:  # type: ignore[empty-body]
    """The parts this plugin offers."""


@hookspec
def vlmkit_presets() -> Iterable[Path]:  # type: ignore[empty-body]
    """Folders of preset files this plugin ships."""


@hookspec
def vlmkit_commands(commands: Any) -> None:
    """Add subcommands to the `vlmkit` command line; `commands` is its typer application."""
