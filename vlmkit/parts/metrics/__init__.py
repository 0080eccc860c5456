"""Metrics: answers and what they should have been to a score between 0 and 1."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("metric", name, f"{__name__}.{name}") for name in ("anls", "choice", "exact", "relaxed", "vqa")]
