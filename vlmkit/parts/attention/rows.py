"""Where each sequence lies, in the row of tokens and in the cache. Shared by the backends here."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmkit.types import KVCache


class Place(NamedTuple):
    """One sequence: `length` tokens from `start` on, behind `past` positions of cache row `row`."""

    row: int
    start: int
    length: int
    past: int

    @property
    def end(self) -> int:
        return self.past + self.length


class Places(tuple[Place, ...]):
    """Those of one call. All layers get the same object, so what is kept about it is found without a look inside."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def place(k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None) -> Places:
    """The sequences that have tokens in this call, in order; a cache gets their keys and values.

    k, v [total, kv_heads, head]   lens [sequences]
    """
    sequences = _places(tuple(lens.tolist()), None if cache is None else tuple(cache.lens.tolist()))
    if cache is not None:
        _write(cache, k, v, sequences)
    return sequences


@lru_cache(maxsize=4)  # all layers of a forward ask for the same
def _places(counts: tuple[int, ...], past: tuple[int, ...] | None) -> Places:
    """Where the sequences lie that have tokens in this call."""
    starts = accumulate(counts, initial=0)
    found = zip(range(len(counts)), starts, counts, past or repeat(0), strict=False)
    return Places(Place(*one) for one in found if one[2])


def _write(cache: KVCache, k: Tensor, v: Tensor, sequences: Places) -> None:
    """Put new keys and values behind what each cache row holds.   k, v [total, kv_heads, head]"""
    if len(sequences) == 1:
        new: Any = sequences[0].row, slice(sequences[0].past, sequences[0].end)
    else:
        new = _targets(sequences, cache.k.device)
    cache.k[new], cache.v[new] = k, v


@lru_cache(maxsize=2)  # all layers of a forward ask for the same
def _targets(sequences: Places, device: torch.device) -> Any:
    rows = [s.row for s in sequences for _ in range(s.length)]
    positions = [at for s in sequences for at in range(s.past, s.end)]
    with torch.inference_mode(False):  # kept between calls, so it must also serve a later one that learns
        return torch.tensor([rows, positions], dtype=torch.int64, device=device).unbind()


def visible(count: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """Which of `end` keys each of the last `count` positions sees.   bool [count, end]"""
    query = torch.arange(end - count, end, device=device)[:, None]
    key = torch.arange(end, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)
