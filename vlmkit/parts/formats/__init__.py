"""Layouts of checkpoints: other people's names for tensors and fields."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    names = ("clip", "language", "llava", "llava-hf", "timm")
    return [Part("format", name, f"{__name__}.{name.replace('-', '_')}") for name in names]
