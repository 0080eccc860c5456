"""A section from another checkpoint, tensor by tensor, beside the one that the first checkpoint would have given."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from ..errors import CheckpointMismatchError
from .keys import join
from .paper import Origin, Paper, paper, part_of
from .tensors import read


class Change(NamedTuple):
    """One tensor of a section.

    norm     of what is loaded, and of what the first checkpoint has in its place; None where that does not fit
    cosine   between the two
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    before: float | None
    cosine: float | None


def compare(plan: Paper) -> list[Change]:
    """What differs in each section that an entry of `weights` behind the first one fills."""
    first, *others = plan.preset.weights
    sections = [section for entry in others for section in entry.into]
    found: list[Change] = []
    for section in sections:
        entry = first.model_copy(update={"into": (section,)})
        old: Origin | None = None
        with suppress(CheckpointMismatchError):  # it has no such section, or another kind of it
            old = paper(plan.preset.model_copy(update={"weights": (entry,)}), verify=False).origins[0]
        for origin in plan.origins[1:]:
            names = [name for name in origin.plan.pieces if part_of(name) == section]
            found += [_change(name, origin, old, tuple(plan.wanted[name].shape)) for name in names]
    return found


def _change(name: str, origin: Origin, old: Origin | None, shape: tuple[int, ...]) -> Change:
    new = _tensor(name, origin, shape).flatten()
    norm = float(new.norm())
    if old is None or name not in old.plan.pieces or (was := _tensor(name, old, shape).flatten()).shape != new.shape:
        return Change(name, shape, norm, None, None)
    before = float(was.norm())
    return Change(name, shape, norm, before, float(new @ was) / (norm * before) if norm * before else 0.0)


def _tensor(name: str, origin: Origin, shape: tuple[int, ...]) -> Tensor:
    """One of ours, as an origin stores it, in double precision.   [any]"""
    piece = origin.plan.pieces[name]
    parts = dict(read({theirs: origin.stored[theirs] for theirs in piece.names}))
    tensors = [parts[theirs].double() for theirs in piece.names]
    return join(tensors, piece.how, shape)
