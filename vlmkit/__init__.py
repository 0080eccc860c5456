"""vlmkit: build, swap and study vision-language models from parts.

Importing this package imports no torch; each name below is fetched from its own module when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import check, parts, presets
    from .checkpoint.export import export
    from .checkpoint.load import load
    from .checkpoint.native import save
    from .compose.bind import compose
    from .errors import (
        MediaError,
        PluginError,
        PresetError,
        ShapeError,
        VlmkitError,
        WeightsError,
    )
    from .generate import generate, stream
    from .hookspecs import Part, hookimpl
    from .limits import Limits
    from .model.assemble import build
    from .train.loss import loss
    from .types import Batch, Features, Generation, Layout, Visual

__version__ = "0.1.0"

_HOMES = {
    "Batch": "types", "Features": "types", "Generation": "types", "Layout": "types", "Visual": "types",
    "Limits": "limits",
    "MediaError": "errors", "PluginError": "errors", "PresetError": "errors", "ShapeError": "errors",
    "VlmkitError": "errors", "WeightsError": "errors",
    "Part": "hookspecs", "hookimpl": "hookspecs",
    "build": "model.assemble", "check": "api", "compose": "compose.bind", "export": "checkpoint.export",
    "generate": "generate", "load": "checkpoint.load", "loss": "train.loss", "parts": "api", "presets": "api",
    "save": "checkpoint.native", "stream": "generate",
}  # fmt: skip
_MODULES = ("contracts", "errors", "limits", "registry", "types")

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'vlmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})


class _Outside(ModuleType):
    """Keeps `vlmkit.parts` and `vlmkit.generate` functions, though folders of the same names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Outside
