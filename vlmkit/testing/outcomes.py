"""What a check is, which there are for a kind, and how one part is taken through them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from ..errors import PluginContractError, clean
from ..hookspecs import KINDS
from ..registry import Entry

MODULES = ("every", "modules", "vision", "language", "rest")  # of this folder; they are imported when one is checked
MODELS = ("tower", "projector", "packer", "decoder")


class Promise(NamedTuple):
    """One check: the kinds it is for, and the function that raises when a part does not keep it."""

    name: str
    kinds: tuple[str, ...]
    check: Callable[[Any], None]

    @property
    def text(self) -> str:
        return " ".join((self.check.__doc__ or "").split())


class Outcome(NamedTuple):
    """How one check went; `said` is what was found instead, or why it does not apply."""

    check: str
    promise: str
    state: Literal["passed", "failed", "skipped"]
    said: str = ""


class Skipped(Exception):
    """The check does not apply here."""


_all: list[Promise] = []


def promise(*kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Marks a function as a check of some kinds; of every kind when none is named."""

    def mark(check: Callable[[Any], None]) -> Callable[[Any], None]:
        _all.append(Promise(check.__name__, kinds or KINDS, check))
        return check

    return mark


@cache
def _loaded() -> list[Promise]:
    for module in MODULES:
        importlib.import_module(f".{module}", __package__)
    return _all


def promises(kind: str) -> list[Promise]:
    """The checks of a kind, light ones first."""
    return [each for each in _loaded() if kind in each.kinds]


def want(holds: object, said: str) -> None:
    """The line in which a check fails."""
    if not holds:
        raise PluginContractError(said)


def examine(entry: Entry, *some: Promise) -> Iterator[Outcome]:
    """Take one part through all checks of its kind, or through some; what it raises is an outcome, too."""
    known = some or promises(entry.kind)
    from .subjects import subject

    case = subject(entry)
    for each in known:
        yield _one(each, case)


def examine_preset(name: str) -> Outcome:
    """Whether a preset that a plugin ships can be used as it is."""
    return _one(Promise("preset_fits", (), _fits), name)


def _fits(preset: str) -> None:
    """Every part it names is found, its fields are right, and the parts fit together; those of each cell of a study."""
    from ..compose.bind import compose
    from ..compose.cells import cells, run_of
    from ..compose.read import read
    from ..compose.study import Study
    from ..model.assemble import assemble
    from ..model.rehearse import rehearse

    if not {"tower", "projector", "decoder"} <= set(read(preset).value):
        raise Skipped("it names no model; it is laid over one that does")
    made = compose(preset)
    for run in [run_of(made, cell, 0) for cell in cells(made)] if isinstance(made, Study) else [made]:
        rehearse(assemble(run), run.name)


def _one(each: Promise, case: Any) -> Outcome:
    try:
        each.check(case)
    except Skipped as why:
        return Outcome(each.name, each.text, "skipped", str(why))
    except PluginContractError as error:
        return Outcome(each.name, each.text, "failed", error.what)
    except Exception as error:  # whatever a part does
        said = " ".join(clean(f"{type(error).__name__}: {error}").split())
        return Outcome(each.name, each.text, "failed", said[:300])
    return Outcome(each.name, each.text, "passed")
