"""A study: a run with what varies, under which seeds, and what is measured. Its cells are runs of their own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from vlmkit.contracts import PartConfig, PartOf

from .preset import Run, Section


class Measure(Section):
    """Questions with their answers, and how what a model says about them is judged."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="such as the skill that is asked for")
    data: Annotated[PartConfig, PartOf("dataset")]
    metrics: tuple[Annotated[PartConfig, PartOf("metric")], ...] = Field(
        (), description="empty: exact match, found out in one pass and without generating")
    max_new_tokens: int = Field(64, ge=1, description="the longest answer that is generated")


class Vary(Section):
    """What differs between the cells. Where several are given, every combination is a cell."""

    grid: dict[str, tuple[Any, ...]] = Field({}, description="path -> values; every combination")
    paired: dict[str, tuple[Any, ...]] = Field({}, description="path -> values; all first ones, all second ones, ...")
    list_: tuple[dict[str, Any], ...] = Field((), alias="list", description="layers, each with a name")

    @model_validator(mode="after")
    def _whole(self) -> Vary:
        if not (self.grid or self.paired or self.list_):
            raise ValueError("nothing varies; give `grid`, `paired` or `list`")
        if len({len(values) for values in self.paired.values()}) > 1:
            raise ValueError(f"lists of one length are paired, got {[len(v) for v in self.paired.values()]}")
        if any(not values for values in (*self.grid.values(), *self.paired.values())):
            raise ValueError("a list of no values")
        if any(not isinstance(layer.get("name"), str) for layer in self.list_):
            raise ValueError("every layer of `list` has a name")
        return self


class Study(Run):
    """A run with what varies in it."""

    vary: Vary
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each cell is trained once with every seed")
    measure: tuple[Measure, ...] = Field(min_length=1)
    jobs: int = Field(1, ge=1, description="cells that are trained at the same time, each by a process of its own")
