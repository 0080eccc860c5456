"""The short answers: which presets, which parts, does this one fit together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import registry
from .compose.bind import compose
from .compose.find import presets as _presets

if TYPE_CHECKING:
    from .compose.preset import Preset
    from .model.rehearse import Report


def presets() -> dict[str, Path]:
    """Every preset that is found by name, in lookup order."""
    return _presets()


def parts(kind: str | None = None) -> list[registry.Entry]:
    """Every part of a kind, or of all: kind, name, plugin, module, summary."""
    return registry.entries(kind)


def check(preset: Preset | str, *words: str) -> Report:
    """Rehearse a preset on the meta device: no weights, no memory.

    Raises PresetError when it does not compose and ShapeError when its parts do not fit together.
    """
    from .model.assemble import assemble
    from .model.rehearse import rehearse

    bound = compose(preset, *words) if isinstance(preset, str) or words else preset
    return rehearse(assemble(bound), bound.name)
