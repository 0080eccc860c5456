"""Attention by torch's scaled_dot_product_attention: right for every call, on every device."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vlmkit.contracts import PartConfig
from vlmkit.types import FixedCache, KVCache

from .rows import Place, place, visible

BLOCK = 512  # queries that a mask is made for at a time


class Config(PartConfig):
    """No fields."""


class Sdpa:
    """Sequences of equal length in one call, single new tokens in one call, everything else one by one."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        sequences = place(k, v, lens, cache)
        if not sequences:
            return torch.zeros_like(q)
        if len(sequences) == 1 and cache is not None and len(q) > 1 and not k.requires_grad:  # lies head by head
            return behind(q, cache, sequences[0], window)
        if cache is None or not any(s.past for s in sequences):
            return fresh(q, k, v, [s.length for s in sequences], window)
        ones = [s for s in sequences if s.length == 1]
        if len(ones) == len(sequences):
            return step(q, cache, sequences, window)
        out = torch.empty_like(q)
        if ones:
            at = [s.start for s in ones]
            out[at] = step(q[at], cache, tuple(ones), window)
        for s in sequences:
            if s.length > 1:
                new = slice(s.start, s.start + s.length)
                out[new] = behind(q[new], cache, s, window)
        return out


    @staticmethod
    def fixed(q: Tensor, k: Tensor, v: Tensor, cache: FixedCache) -> Tensor:
        """One token for each row.   q [rows, heads, head]   k, v [rows, kv_heads, head] -> [rows, heads, head]"""
        rows = torch.arange(len(q), device=q.device)
        for kept, new in ((cache.k, k), (cache.v, v)):
            kept[rows, cache.at] = torch.where(cache.live, new, kept[rows, cache.at])
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)
        grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[2])
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=cache.mask).flatten(1, 2)


def behind(q: Tensor, cache: KVCache, s: Place, window: int | None) -> Tensor:
    """One sequence's queries, over all that its row of the cache holds.   q [length, heads, head] -> the same"""
    return attend(q[None], cache.k[s.row : s.row + 1, : s.end], cache.v[s.row : s.row + 1, : s.end], window)[0]


def fresh(q: Tensor, k: Tensor, v: Tensor, counts: list[int], window: int | None) -> Tensor:
    """Whole sequences, nothing before them.   q [total, heads, head] -> [total, heads, head]"""
    if len(set(counts)) == 1:
        q, k, v = (x.reshape(len(counts), counts[0], *x.shape[1:]) for x in (q, k, v))
        return attend(q, k, v, window).flatten(0, 1)
    pieces = zip(*(torch.split(x, counts) for x in (q, k, v)), strict=True)
    return torch.cat([attend(a[None], b[None], c[None], window)[0] for a, b, c in pieces])


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The queries are the last `count` positions.

    q [rows, count, heads, head]   k, v [rows, end, kv_heads, head] -> [rows, count, heads, head]
    """
    count, end = q.shape[1], k.shape[1]
    group = q.shape[2] // k.shape[2]
    if group > 1 and not q.is_cpu:  # a GPU's kernel for float32 knows no groups, and then all scores are laid out
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.is_cpu and count > BLOCK and q.dtype == torch.float32:  # read again and again, so worth laying head by head
        q, k, v = (x if x.stride(2) == x.shape[3] else x.contiguous() for x in (q, k, v))
    if count == end and (window is None or window >= end):
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1 and q.is_cpu)
        return out.transpose(1, 2)
    pieces, past = [], end - count
    for at in range(past, end, BLOCK):  # no mask is ever larger than BLOCK rows
        to = min(at + BLOCK, end)
        seen = slice(0 if window is None else max(0, at + 1 - window), to)
        mask = visible(to - at, to - seen.start, window, q.device)
        pieces.append(scaled_dot_product_attention(
            q[:, :, at - past : to - past], k[:, :, seen], v[:, :, seen], mask, enable_gqa=group > 1 and q.is_cpu
        ))  # fmt: skip
    return torch.cat(pieces, 2).transpose(1, 2)


def step(q: Tensor, cache: KVCache, sequences: tuple[Place, ...], window: int | None) -> Tensor:
    """One new token for each sequence.   q [sequences, heads, head] -> the same

    Works on a view of the cache from the first row to the last; resting rows between are dropped after.
    """
    count, heads, head = q.shape
    view = _view(sequences, window, q.device, q.dtype)
    wide = view.last - view.first
    k = cache.k[view.first : view.last, : view.longest].transpose(1, 2)
    v = cache.v[view.first : view.last, : view.longest].transpose(1, 2)
    if count < wide:
        q = q.new_zeros(wide, heads, head).index_copy_(0, view.rows, q)
    # heads that share a key stand where a sequence of queries would: nothing is repeated
    out = scaled_dot_product_attention(q.view(wide, k.shape[1], -1, head), k, v, attn_mask=view.mask).flatten(1, 2)
    return out if count == wide else out[view.rows]


class View(NamedTuple):
    """Which part of a cache a step looks at.

    rows  [sequences]           counted from the first
    mask  [rows, 1, 1, keys]    what is added to scores: 0 or -inf; None where all are as long
    """

    first: int
    last: int
    longest: int
    rows: Tensor
    mask: Tensor | None


@lru_cache(maxsize=2)  # all layers of a forward ask for the same
def _view(sequences: tuple[Place, ...], window: int | None, device: torch.device, dtype: torch.dtype
          ) -> View:
    first, last, longest = sequences[0].row, sequences[-1].row + 1, max(s.end for s in sequences)
    with torch.inference_mode(False):
        rows = torch.tensor([s.row - first for s in sequences], device=device)
        if all(s.end == longest for s in sequences) and (window is None or window >= longest):
            return View(first, last, longest, rows, None)
        ends = torch.ones(last - first, dtype=torch.long, device=device)  # a resting row looks at one key
        ends[rows] = torch.tensor([s.end for s in sequences], device=device)
        key = torch.arange(longest, device=device)
        seen = key < ends[:, None]
        if window is not None:
            seen &= key >= ends[:, None] - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        return View(first, last, longest, rows, mask[:, None, None])


def build(config: Config) -> Sdpa:
    return Sdpa()


EXAMPLE: dict[str, object] = {}
