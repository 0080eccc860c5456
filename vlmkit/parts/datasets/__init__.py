"""Datasets: where conversations come from."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("dataset", name, f"vlmkit.parts.datasets.{name}")
            for name in ("conversations", "mixture", "parquet", "scenes", "webdataset")]  # fmt: skip
