"""FlashAttention 2, of the package flash-attn. CUDA, float16 or bfloat16."""

from __future__ import annotations

import importlib
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vlmkit.contracts import PartConfig
from vlmkit.types import KVCache

from .kernels import check, reach, spans, unfit
from .rows import Place, place


class Config(PartConfig):
    """No fields."""


class Flash:
    """New sequences in one call; behind a cache, one call for all that bring equally many tokens."""

    def unfit(self, device: torch.device, dtype: torch.dtype, head: int) -> str | None:
        """Why it cannot serve; None when it can. The package is imported only where a GPU could run it."""
        if why := unfit(device, dtype, head):
            return why
        try:
            _library().flash_attn_with_kvcache  # noqa: B018 - flash-attn-4 alone has a module of that name, too
        except ModuleNotFoundError:
            return "needs the package flash-attn, which is not installed"
        except Exception as error:  # built for another torch, most often
            return f"needs the package flash-attn, which cannot be imported: {error}"
        return None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        check(q, cache)
        sequences = place(k, v, lens, cache)
        if not sequences:
            return torch.zeros_like(q)
        if cache is None or not any(s.past for s in sequences):
            at = spans(sequences, None, q.device)
            out: Tensor = _library().flash_attn_varlen_func(
                q, k, v, at.queries, at.queries, at.longest, at.longest, causal=True, window_size=reach(window))
            return out
        out = torch.empty_like(q)
        for _, several in groupby(sorted(sequences, key=lambda s: s.length), key=lambda s: s.length):
            self.behind(q, cache, tuple(several), window, out)
        return out

    def behind(self, q: Tensor, cache: KVCache, sequences: tuple[Place, ...], window: int | None, out: Tensor) -> None:
        """Sequences that bring equally many tokens, whose keys are in the cache.   q, out [total, heads, head]"""
        at = spans(sequences, 1, q.device)  # of a cache of room 1 the keys' starts are the rows
        count = sequences[0].length
        tokens: Any = slice(None)
        if len(sequences) * count < len(q):
            tokens = (at.queries[:-1, None] + torch.arange(count, dtype=torch.int32, device=q.device)).flatten()
        out[tokens] = _library().flash_attn_with_kvcache(
            q[tokens].unflatten(0, (-1, count)), cache.k, cache.v, cache_seqlens=at.ends,
            cache_batch_idx=at.keys[:-1], causal=True, window_size=reach(window)).flatten(0, 1)


def _library() -> Any:
    return importlib.import_module("flash_attn")


def build(config: Config) -> Flash:
    return Flash()


EXAMPLE: dict[str, object] = {}
