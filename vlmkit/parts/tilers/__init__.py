"""Tilers: a picture to square tiles."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("tiler", name, f"{__name__}.{name}") for name in ("anyres", "square")]
