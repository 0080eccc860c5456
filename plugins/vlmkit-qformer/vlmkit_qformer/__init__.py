"""A Q-Former for vlmkit: one projector, and a preset that uses it."""

from collections.abc import Iterable
from pathlib import Path

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("projector", "qformer", f"{__name__}.qformer")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]
