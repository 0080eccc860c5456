"""Rules applied to names: which stored tensors make which of ours, and the table read backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Rule
from .tensors import NUMBERS, Stored

HOLES = {"{i}": r"(?P<i>\d+)", "{p}": r"(?P<p>.+)"}


class Piece(NamedTuple):
    """What one of our tensors is made of: stored names in order, and how they are joined."""

    names: tuple[str, ...]
    how: str


class Plan(NamedTuple):
    """A folder compared with a model, on paper.

    pieces   our name -> what it is made of
    spare    stored, and known, but nothing here runs it: blocks behind the layer that is read, final norms
    unknown  stored, and no rule knows it
    unlike   one line for each of ours whose stored shape or kind differs
    guess    what may be behind it, where that can be seen
    """

    pieces: dict[str, Piece]
    spare: list[str]
    unknown: list[str]
    unlike: list[str]
    guess: str = ""


class Table:
    """Rules, compiled."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = [(rule, [_pattern(t) for t in _listed(rule.theirs)], rule.ours and _pattern(rule.ours))
                      for rule in rules]

    def ours(self, name: str) -> tuple[str | None, Piece] | None:
        """The name of ours that a stored tensor helps to make (None: known, not kept), and all that make it."""
        for rule, patterns, _ in self.rules:
            for pattern in patterns:
                if found := pattern.fullmatch(name):
                    ours = rule.ours and _fill(rule.ours, found.groupdict())
                    return ours, Piece(tuple(_fill(t, found.groupdict()) for t in _listed(rule.theirs)), rule.how)
        return None

    def theirs(self, name: str) -> Piece | None:
        """What one of our tensors is in their layout; None where it has no home."""
        for rule, _, pattern in self.rules:
            if pattern and (found := pattern.fullmatch(name)):
                return Piece(tuple(_fill(t, found.groupdict()) for t in _listed(rule.theirs)), rule.how)
        return None


def compare(table: Table, stored: Mapping[str, Stored], wanted: Mapping[str, Tensor],
            spare: Callable[[str], bool]) -> Plan:
    """Both ways, without reading a tensor. `spare`: whether a name of ours belongs to what was never built."""
    plan = Plan({}, [], [], [])
    for name in stored:
        found = table.ours(name)
        if found is None:
            plan.unknown.append(name)
            continue
        ours, piece = found
        if ours is None or (ours not in wanted and spare(ours)):
            plan.spare.append(name)
        elif ours not in wanted:
            plan.unknown.append(name)
        elif all(part in stored for part in piece.names):
            plan.pieces[ours] = piece
    for ours, piece in plan.pieces.items():
        if problem := _unlike([stored[name] for name in piece.names], piece.how, wanted[ours]):
            plan.unlike.append(f"{' + '.join(piece.names)} is {problem} as {ours}")
    return plan._replace(guess=_guess(table, plan, stored, wanted))


def _guess(table: Table, plan: Plan, stored: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> str:
    """A prefix that a wrapper put before the names; matrices that lie the other way; another size of the model."""
    for name in plan.unknown[:1]:
        for at in [at for at, letter in enumerate(name, 1) if letter == "."]:
            before = name[:at]
            bare = [n.removeprefix(before) for n in plan.unknown if n.startswith(before)]
            if len(bare) > 1 and all((found := table.ours(n)) and found[0] in {*wanted, None} for n in bare):
                return f"{len(bare)} of these names are known without {before!r}: rename them"
    matrices = [o for o, piece in plan.pieces.items() if wanted[o].ndim == 2 and piece.how != "stack"]
    pairs = [(stored[plan.pieces[o].names[0]].shape, tuple(wanted[o].shape)) for o in matrices]
    other = [(found, shape) for found, shape in pairs if found != shape]
    if other and all(found == shape[::-1] for found, shape in other):
        return "the matrices are transposed: some layouts store [in, out] where [out, in] is wanted"
    if len(other) > 1 and len(other) * 2 > len(pairs):
        return "these weights are of another size of the model: see decoder.size, or name their own folder"
    return ""


def join(parts: list[Tensor], how: str, shape: tuple[int, ...]) -> Tensor:
    """Their tensors as one of ours, of that shape."""
    return torch.cat(parts) if how == "stack" else parts[0].view(shape) if how == "squeeze" else parts[0]


def split(tensor: Tensor, piece: Piece) -> list[tuple[str, Tensor]]:
    """One of our tensors as theirs."""
    if piece.how == "stack":
        return list(zip(piece.names, tensor.chunk(len(piece.names)), strict=True))
    while piece.how == "squeeze" and tensor.ndim > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return [(piece.names[0], tensor)]


def _unlike(parts: list[Stored], how: str, wanted: Tensor) -> str:
    shapes, shape = [part.shape for part in parts], tuple(wanted.shape)
    if how == "stack":
        fits = sum(s[0] for s in shapes if s) == shape[0] and all(s[1:] == shape[1:] for s in shapes)
    elif how == "squeeze":
        fits = (1,) * (len(shape) - len(shapes[0])) + shapes[0] == shape
    else:
        fits = set(shapes) == {shape}
    floating = wanted.is_floating_point()
    kin = all("F" in part.dtype if floating else NUMBERS[part.dtype] == wanted.dtype for part in parts)
    if fits and kin:
        return ""
    kind = "float" if floating else str(wanted.dtype).removeprefix("torch.")
    return f"{' + '.join(f'{list(part.shape)} {part.dtype}' for part in parts)}, wanted {list(shape)} {kind}"


def _listed(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _pattern(text: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{[ip]\})", text)
    return re.compile("".join(HOLES.get(piece) or re.escape(piece) for piece in pieces))


def _fill(text: str, given: Mapping[str, str]) -> str:
    for hole, value in given.items():
        text = text.replace(f"{{{hole}}}", value)
    return text
