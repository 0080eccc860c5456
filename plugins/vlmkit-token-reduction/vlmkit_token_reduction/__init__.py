"""Packers that give the decoder fewer tokens, and presets that use them."""

from collections.abc import Iterable
from pathlib import Path

from vlmkit.hookspecs import Part, hookimpl

vlmkit_api = 1


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("packer", name, f"{__name__}.{name}") for name in ("tome", "prumerge", "scales")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]
