"""What the kernels for CUDA share: what they take, and where sequences lie, told on the device."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vlmkit.errors import ShapeError
from vlmkit.types import KVCache

from .rows import Place

WIDEST, STEP = 256, 8  # of a head
AMPERE = (8, 0)  # the oldest compute capability


@lru_cache(maxsize=64)  # asked before each call
def unfit(device: torch.device, dtype: torch.dtype, head: int) -> str | None:
    """Why flash attention cannot serve, whichever implementation; None when it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, and this is {device.type}"
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch finds none"
    if torch.version.hip is None and (found := torch.cuda.get_device_capability(device)) < AMPERE:
        return f"needs compute capability {AMPERE[0]}.{AMPERE[1]}, and this GPU has {found[0]}.{found[1]}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    if head > WIDEST or head % STEP:
        return f"needs heads of at most {WIDEST} in steps of {STEP}, and these are {head} wide"
    return None


def check(q: Tensor, cache: KVCache | None) -> None:
    """A model that was moved or cast after it was assembled is met here.   q [total, heads, head]"""
    if why := unfit(q.device, q.dtype, q.shape[2]):
        raise ShapeError(f"this attention backend {why}", hint="load with attention=sdpa, or on the GPU in bfloat16")
    if cache is not None and learns(q):
        raise ShapeError("this attention backend has no gradients behind a cache", hint="train without a cache")


def learns(q: Tensor) -> bool:
    """Whether somebody wants gradients.   q [total, heads, head]"""
    return q.requires_grad and torch.is_grad_enabled()


def reach(window: int | None) -> tuple[int, int]:
    """A window in flash attention's words: how many positions before and behind itself a query sees."""
    return (-1 if window is None else window - 1), 0


class Spans(NamedTuple):
    """Where each sequence's queries and keys lie, int32 on the device.

    queries  [sequences + 1]  the first query of each, then the end
    keys     [sequences + 1]  the first key of each, in the row of tokens or in a flattened cache
    ends     [sequences]      how many keys each has
    """

    queries: Tensor
    keys: Tensor
    ends: Tensor
    longest: int  # in queries


@lru_cache(maxsize=16)  # all layers of a forward ask for the same
def spans(sequences: tuple[Place, ...], room: int | None, device: torch.device) -> Spans:
    """`room` is the capacity of a cache whose rows hold the keys; None: the keys lie beside the queries."""
    last, starts = sequences[-1], [s.start for s in sequences]
    queries = [*starts, last.start + last.length]
    keys = queries if room is None else [*(s.row * room for s in sequences), (last.row + 1) * room]
    sizes = [len(queries), len(keys), len(sequences)]
    with torch.inference_mode(False):  # kept between calls, so it must also serve a later one that learns
        flat = torch.tensor([*queries, *keys, *(s.end for s in sequences)], dtype=torch.int32, device=device)
        starts, keys_at, ends = flat.split(sizes)
        return Spans(starts, keys_at, ends, max(s.length for s in sequences))
