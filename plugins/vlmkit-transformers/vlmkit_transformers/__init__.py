"""transformers for vlmkit, both ways: its models as towers and decoders, and an assembled model as one of its own."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmkit.hookspecs import Part, hookimpl

_HOMES = {"VlmkitConfig": "model", "VlmkitForConditionalGeneration": "model", "VlmkitProcessor": "processor",
          "wrap": "processor"}  # fetched on first touch: listing parts imports no transformers

__all__ = [*sorted(_HOMES), "register"]


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part(kind, "transformers", f"{__name__}.{kind}") for kind in ("tower", "decoder", "format")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]


def register() -> None:
    """Make AutoConfig, AutoModelForImageTextToText, AutoProcessor and `pipeline` know the models `wrap` makes."""
    importlib.import_module(".processor", __name__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
