"""Towers: pixels to tokens."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("tower", name, f"{__name__}.{name}") for name in ("timm", "temporal")]
