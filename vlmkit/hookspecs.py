"""The three hooks of a plugin, and the record it offers parts with. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

PROJECT = "vlmkit"  # also the entry-point group
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

KINDS = ("tower", "projector", "packer", "decoder", "chat", "tiler", "sampler", "attention", "format", "dataset",
         "metric")


class Part(NamedTuple):
    """An entry a plugin offers: a kind, a name, and the module that holds it (text until it is used)."""

    kind: str
    name: str
    module: str


@hookspec
def vlmkit_parts() -> Iterable[Part]:  # type: ignore[empty-body]
    """The parts this plugin offers."""


@hookspec
def vlmkit_presets() -> Iterable[Path]:  # type: ignore[empty-body]
    """Folders of preset files this plugin ships."""


@hookspec
def vlmkit_commands(commands: Any) -> None:
    """Add subcommands to the `vlmkit` command line; `commands` is its typer application."""
