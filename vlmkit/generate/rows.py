"""The rows of the cache: who has which, what finished requests left there for others, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..model import features
from ..types import KVCache
from .needs import Model
from .request import Request

FIRST = 256  # positions a row has at least, when somebody may need that many
LEAST = 16  # tokens that a prompt must share with a row to start from it


def position_bytes(decoder: Any) -> int:
    """Keys and values of one position, in all layers."""
    return sum(t.nbytes for layer in decoder.cache(1, 1) for t in (layer.k, layer.v))


def nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def state(model: Model) -> object:
    """Equal as long as all weights are the same; None while the model learns, or where changes cannot be seen."""
    modules = list(model.modules())  # one walk: `parameters` and `buffers` take two more
    held = (named.values() for module in modules for named in (module._parameters, module._buffers))
    tensors = [tensor for each in held for tensor in each if tensor is not None]
    if any(module.training for module in modules) or any(tensor.is_inference() for tensor in tensors):
        return None
    places = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]  # nothing else is ever put there
    return features.steps, places, [tensor._version for tensor in tensors]


@dataclass(eq=False)
class Row:
    """One row of the cache: what it holds, and of whom.

    keys     ids of what it holds, -1 where a picture or clip is; empty when nobody may start from it   [positions]
    visuals  digest and count of tokens of each picture or clip, in reading order
    weights  the state of the model that computed it
    user     the request that runs in it
    used     positions that may hold something, told when its user leaves
    left     when its last user left; larger is later
    """

    keys: Tensor = field(default_factory=nothing)
    visuals: list[tuple[bytes, int]] = field(default_factory=list)
    weights: object = None
    user: Request | None = None
    used: int = 0
    left: int = 0

    def shares(self, request: Request, filled: int) -> int:
        """How many tokens from the start on are the request's own: equal ids, and equal pictures at equal places."""
        count = min(len(self.keys), filled, len(request.keys) - 1)  # one is left to compute
        other = (self.keys[:count] != request.keys[:count]).nonzero()
        count = int(other[0]) if len(other) else count
        slots = 0
        for (mine, tokens), theirs in zip(self.visuals, request.digests, strict=False):
            if mine != theirs:
                break
            slots += tokens
        return min(count, int(request.prompt.slots[slots])) if slots < len(request.prompt.slots) else count


class Rows:
    """The cache and its rows. It grows with what is needed, up to `most` rows and `memory` bytes."""

    def __init__(self, decoder: Any, most: int, memory: float = inf) -> None:
        self.most, self.memory = most, memory
        self.size = position_bytes(decoder)
        self.cache: list[KVCache] = decoder.cache(0, 0)
        self.orders = [sorted(range(4), key=layer.k.stride, reverse=True) for layer in decoder.cache(2, 2)]
        self.rows: list[Row] = []
        self._clock = 0

    @property
    def lens(self) -> Tensor:
        return self.cache[0].lens

    @property
    def reach(self) -> int | float:
        """Positions that one row may have when it is the only one."""
        return inf if self.memory == inf else int(self.memory // self.size)

    def fits(self, reach: int) -> bool:
        """Whether there is room for one more request that may need `reach` positions, beside all that run."""
        busy = [row.user.reach for row in self.rows if row.user]
        return len(busy) < self.most and (len(busy) + 1) * max([reach, *busy]) * self.size <= self.memory

    def take(self, request: Request, weights: object) -> None:
        """Give a request a row, with as much of its prompt in it as any row holds; it must fit."""
        source, same = self._nearest(request, weights)
        row = self._free(source, same)
        at = self.rows.index(row)
        if source is not None and source is not row:
            self._copy(self.rows.index(source), at, same)
        for layer in self.cache:  # leftovers are masked, but a mask does not stop a NaN
            layer.k[at, same : row.used] = 0
            layer.v[at, same : row.used] = 0
        row.visuals, row.used = [] if source is None else source.visuals[: len(request.digests)], same
        row.keys, row.weights, row.user = request.keys, weights, request
        self.lens[at] = same
        request.row, request.done, request.reused = at, same, same

    def held(self, request: Request) -> tuple[int, int]:
        """How many visuals of a request its row holds whole, and how many tokens of the next."""
        count, whole = int((request.prompt.slots < request.done).sum()), 0
        for _, tokens in self.rows[request.row].visuals:
            if count < tokens:
                break
            count, whole = count - tokens, whole + 1
        return whole, count

    def shown(self, request: Request, first: int, counts: list[int]) -> None:
        """Note how many tokens the visuals of a request have, from the `first` on."""
        row = self.rows[request.row]
        row.visuals = row.visuals[:first] + list(zip(request.digests[first:], counts, strict=False))

    def leave(self, request: Request) -> None:
        """Free a request's row. What it holds may serve others, unless the request failed."""
        at, row, filled = request.row, self.rows[request.row], int(self.lens[request.row])
        self._clock += 1
        row.user, row.left, row.used = None, self._clock, max(row.used, filled)
        request.row = -1
        if row.weights is not None and request.error is None:
            row.keys = torch.cat((request.keys, torch.tensor(request.ids, dtype=torch.int64)))[:filled]
        else:
            row.keys, row.visuals, row.weights = nothing(), [], None
            self.lens[at] = 0

    def rewind(self, requests: Sequence[Request]) -> None:
        """Forget what a step wrote that did not end well."""
        for request in requests:
            self.lens[request.row] = request.done
            self.rows[request.row].used = self.cache[0].k.shape[1]

    def reserve(self, needed: int) -> None:
        """Make the rows `needed` positions long: then twice as long, where a request may come to need that."""
        if needed <= self.cache[0].k.shape[1]:
            return
        busy = [row for row in self.rows if row.user]
        capacity = min(max(2 * needed, FIRST), max(row.user.reach for row in busy if row.user))
        rows = sorted(self.rows, key=lambda row: (row.user is None, -row.left))  # the longest unused go first
        self._resize(rows[: self._room(capacity)], capacity)

    def _nearest(self, request: Request, weights: object) -> tuple[Row | None, int]:
        """The row that shares most with a request, and how much; nothing when that is little."""
        same = [(row.shares(request, filled), row) for row, filled in zip(self.rows, self.lens.tolist(), strict=True)
                if row.weights is not None and row.weights == weights]  # fmt: skip
        most, row = max(same, key=lambda pair: pair[0], default=(0, None))
        return (row, most) if most >= LEAST else (None, 0)

    def _free(self, source: Row | None, same: int) -> Row:
        """A row without a user: the one to go on from, one that holds nothing, a new one, or the one longest unused."""
        if source is not None and source.user is None and 2 * same >= len(source.keys):
            return source
        if not any(row.user is None and not len(row.keys) for row in self.rows):
            self._extend()
        free = [row for row in self.rows if row.user is None]
        return min(free, key=lambda row: (len(row.keys) > 0, row is source, row.left))

    def _extend(self) -> None:
        """Twice as many rows, as far as memory allows; one more at least where nobody's is free."""
        there, capacity = self.cache[0].k.shape[:2]
        wanted = min(max(1, 2 * there), self._room(capacity))
        if wanted > there:
            self._resize(self.rows + [Row() for _ in range(wanted - there)], capacity)
        elif all(row.user for row in self.rows):
            self._resize([*self.rows, Row()], int(self.lens.max()))

    def _room(self, capacity: int) -> int:
        """How many rows of a length there may be."""
        return self.most if self.memory == inf else int(min(self.most, self.memory // max(1, capacity * self.size)))

    def _copy(self, source: int, to: int, count: int) -> None:
        for layer in self.cache:
            layer.k[to, :count] = layer.k[source, :count]
            layer.v[to, :count] = layer.v[source, :count]

    def _resize(self, rows: list[Row], capacity: int) -> None:
        """Another shape; rows that are not among `rows` are dropped. One layer at a time exists twice."""
        old = {id(row): (at, filled) for at, row, filled in zip(count(), self.rows, self.lens.tolist())}
        places = [old.get(id(row), (0, 0)) for row in rows]
        lens = torch.tensor([min(filled, capacity) for _, filled in places], dtype=torch.int64)
        for number, layer in enumerate(self.cache):
            k, v = (torch.empty_permuted((len(rows), capacity, *x.shape[2:]), self.orders[number], dtype=x.dtype,
                                         device=x.device).zero_() for x in (layer.k, layer.v))
            for to, ((at, _), filled) in enumerate(zip(places, lens.tolist(), strict=True)):
                if filled:
                    k[to, :filled], v[to, :filled] = layer.k[at, :filled], layer.v[at, :filled]
            self.cache[number] = layer._replace(k=k, v=v, lens=lens)
        self.rows = rows
        for at, row in enumerate(rows):
            row.used, row.keys = int(lens[at]), row.keys[:capacity]
            if row.user:
                row.keys = row.user.keys
                row.user.row = at
