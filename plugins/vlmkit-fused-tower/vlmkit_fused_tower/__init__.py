"""Several towers on the same pixels as one, and presets that use them."""

from collections.abc import Iterable
from pathlib import Path

from vlmkit.hookspecs import Part, hookimpl

vlmkit_api = 1


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("tower", "fused", f"{__name__}.fused")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]
