"""The table of parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vlmkit import registry
from vlmkit.compose.bind import compose
from vlmkit.contracts import PartConfig
from vlmkit.errors import PluginConflictError, PluginError
from vlmkit.hookspecs import KINDS


class Mine(PartConfig):
    """A projector from a notebook."""

    gain: float = 1.0


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    registry._added.clear()


def test_find_and_names() -> None:
    assert registry.names("projector") == ["linear", "mlp", "pixel_shuffle", "resampler"]
    entry = registry.find("projector", "mlp")
    assert (entry.kind, entry.name, entry.plugin, entry.module) == (
        "projector", "mlp", "vlmkit.projectors", "vlmkit.parts.projectors.mlp")  # fmt: skip
    assert entry.config(**entry.example).build(width=8, out=4)
    assert str(entry) == "projector-mlp"


def test_every_listed_part_is_whole() -> None:
    for entry in registry.entries():
        assert entry.kind in KINDS
        assert entry.summary, entry
        assert issubclass(entry.config, PartConfig), entry
        assert callable(entry.build), entry
        entry.config.model_validate_json(__import__("json").dumps(entry.example))


@pytest.mark.parametrize(("kind", "name", "said"), [
    ("projector", "mpl", r"no projector named 'mpl'; there are: linear, mlp.*did you mean 'mlp'"),
    ("decoder", "zzz", r"no decoder named 'zzz'; there are: transformer$"),
    ("projektor", "mlp", r"no kind named 'projektor'; did you mean 'projector'"),
])  # fmt: skip
def test_what_is_not_there(kind: str, name: str, said: str) -> None:
    with pytest.raises(PluginError) as caught:
        registry.find(kind, name)
    import re

    assert re.search(said, caught.value.what)


def test_a_part_from_a_notebook() -> None:
    def build(config: Mine, *, width: int, out: int) -> tuple[float, int, int]:
        return config.gain, width, out

    registry.add("projector", "mine", Mine, build)
    registry.add("projector", "mine", Mine, build)  # running a cell again is no conflict
    assert registry.find("projector", "mine").summary == "A projector from a notebook."
    preset: Any = compose("llava-1.5-7b", "projector={use: mine, gain: 2}")
    assert preset.projector.build(width=3, out=4) == (2.0, 3, 4)
    with pytest.raises(PluginConflictError, match=r"named 'mlp' already, from plugin vlmkit\.projectors"):
        registry.add("projector", "mlp", Mine, build)
