"""Samplers: which frames of a clip are looked at."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("sampler", name, f"{__name__}.{name}") for name in ("fps", "uniform")]
