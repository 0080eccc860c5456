"""Packers: the tiles of a picture or clip to one row of tokens."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("packer", name, f"{__name__}.{name}") for name in ("anyres", "flat", "frames", "slowfast")]
