"""Checks that a part keeps what its kind promises; for tests, for pytest, and behind `vlmkit plugins check`.

    from vlmkit.testing import check_part
    check_part("projector", "qformer")        # PluginContractError names every promise that is broken

Each name is fetched when it is used: pytest imports this package in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outcomes import Outcome, Promise, examine, examine_preset, promises
    from .package import check_part, complain, parts_of, presets_of

_HOMES = {"check_part": "package", "complain": "package", "parts_of": "package", "presets_of": "package",
          "Outcome": "outcomes", "Promise": "outcomes", "examine": "outcomes", "examine_preset": "outcomes",
          "promises": "outcomes"}  # fmt: skip

__all__ = ["Outcome", "Promise", "check_part", "complain", "examine", "examine_preset", "parts_of", "presets_of",
           "promises"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
