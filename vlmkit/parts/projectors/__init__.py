"""Projectors: tower width to decoder width."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("projector", name, f"{__name__}.{name}") for name in ("linear", "mlp", "pixel_shuffle", "resampler")]
