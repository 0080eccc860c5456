"""Two projectors that give the decoder few tokens, and presets that use them."""

from collections.abc import Iterable
from pathlib import Path

from vlmkit.hookspecs import Part, hookimpl

vlmkit_api = 1


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("projector", name, f"{__name__}.{name}") for name in ("qformer", "cabstractor")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]
