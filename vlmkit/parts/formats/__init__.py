"""Layouts of checkpoints: other people's names for tensors and fields."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("format", "llava-hf", f"{__name__}.llava_hf")]
