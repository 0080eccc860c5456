"""Datasets: where conversations come from."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("dataset", "scenes", "vlmkit.parts.datasets.scenes")]
