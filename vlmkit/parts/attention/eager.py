"""Attention written out step by step: its weights can be looked at, and others are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmkit.contracts import PartConfig
from vlmkit.types import KVCache

from .rows import place, visible


class Config(PartConfig):
    """No fields."""


class Eager(nn.Module):
    """One sequence after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Identity()  # each sequence's weights pass here: [heads, its tokens, keys]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        sequences = place(k, v, lens, cache)
        seen = []
        for s in sequences:
            new = slice(s.start, s.start + s.length)
            keys = k[new] if cache is None else cache.k[s.row, : s.end]
            values = v[new] if cache is None else cache.v[s.row, : s.end]
            seen.append(self.look(q[new], keys, values, window))
        return torch.cat(seen) if seen else torch.zeros_like(q)

    def look(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """q [count, heads, head]   k, v [end, kv_heads, head] -> [count, heads, head]"""
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * q.shape[2] ** -0.5
        mask = visible(q.shape[0], k.shape[0], window, q.device)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = self.weights(scores.softmax(-1, dtype=torch.float32).to(q.dtype))
        seen: Tensor = weights @ v.transpose(0, 1)
        return seen.transpose(0, 1)


def build(config: Config) -> Eager:
    return Eager()


EXAMPLE: dict[str, object] = {}
