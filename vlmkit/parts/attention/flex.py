"""torch's flex_attention with a mask of blocks: compiled on a GPU, in any dtype; slow on a CPU, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vlmkit.contracts import PartConfig
from vlmkit.errors import ShapeError
from vlmkit.types import KVCache

from .kernels import learns
from .rows import Place, place

NARROWEST = 16  # head of the kernel for a GPU
ALWAYS = 1 << 40  # a window that nothing falls out of


class Config(PartConfig):
    """No fields."""


class Flex:
    """All sequences in one call; blocks of keys that no query of a block sees are skipped."""

    def unfit(self, device: torch.device, dtype: torch.dtype, head: int) -> str | None:
        """Why it cannot serve; None when it can."""
        if device.type not in ("cpu", "cuda"):
            return f"runs on a CPU or with CUDA, and this is {device.type}"
        if device.type == "cuda" and head < NARROWEST:
            return f"needs heads of at least {NARROWEST}, and these are {head} wide"
        return None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        if q.is_cpu and learns(q):
            raise ShapeError("flex attention has no gradients on a CPU", hint="train with attention=sdpa")
        sequences = place(k, v, lens, cache)
        if not sequences:
            return torch.zeros_like(q)
        if cache is not None:
            k, v = cache.k.flatten(0, 1), cache.v.flatten(0, 1)
        rows, room = (0, 0) if cache is None else cache.k.shape[:2]
        mask = blocks(sequences, rows, room, window, q.device)
        heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out = _attend(q.is_cuda)(*heads, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].transpose(0, 1)


@lru_cache(maxsize=2)  # all layers of a forward ask for the same
def blocks(sequences: tuple[Place, ...], rows: int, room: int, window: int | None, device: torch.device) -> BlockMask:
    """What each token sees: keys of its own row, from itself back to the window's end.

    rows, room  shape of the cache whose positions are the keys; 0: the tokens are
    """
    with torch.inference_mode(False):
        told = [(s.row, at) for s in sequences for at in range(s.past, s.end)]
        row, position = torch.tensor(told, device=device).T.contiguous()
        key_row, key_position = row, position
        if room:
            key_row = torch.arange(rows, device=device).repeat_interleave(room)
            key_position = torch.arange(room, device=device).repeat(rows)
        far = torch.tensor(ALWAYS if window is None else window, device=device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            back = position[query] - key_position[key]
            seen: Tensor = (row[query] == key_row[key]) & (back >= 0) & (back < far)
            return seen

        make: Any = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
        mask: BlockMask = make(sees, None, None, len(row), len(key_row), device=device)
        return mask


@once
def _attend(compiled: bool) -> Callable[..., Tensor]:
    """torch's function. Compiling takes from 16 seconds up on a CPU, and every width of a head does it again."""
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention  # type: ignore[return-value]


def build(config: Config) -> Flex:
    return Flex()


EXAMPLE: dict[str, object] = {}
