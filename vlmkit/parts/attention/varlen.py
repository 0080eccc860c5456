"""Flash attention that comes with torch: sequences of any length in one call. CUDA, float16 or bfloat16."""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache as once
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlmkit.contracts import PartConfig
from vlmkit.types import KVCache

from .kernels import check, reach, spans, unfit
from .rows import place

# where torch looks for the kernels that it can take the place of its own with, and the GPUs they are for
MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
GPUS = {"FA3": (9,), "FA4": (9, 10)}


class Config(PartConfig):
    """No fields."""


class Varlen:
    """Prompts and single tokens, new ones and those behind a cache, in one call.

    kernels  FA3 or FA4 are put in the place of torch's own, for the whole process, before the first call; None
             takes those that are there
    """

    def __init__(self, kernels: Literal["FA3", "FA4"] | None = None) -> None:
        self.kernels = kernels

    def unfit(self, device: torch.device, dtype: torch.dtype, head: int) -> str | None:
        """Why it cannot serve; None when it can."""
        if (why := unfit(device, dtype, head)) or (why := _lacks()) or self.kernels is None:
            return why
        if (major := torch.cuda.get_device_capability(device)[0]) not in GPUS[self.kernels]:
            wanted = " or ".join(f"{found}.x" for found in GPUS[self.kernels])
            return f"needs compute capability {wanted}, and this GPU has {major}.x"
        return None if _found(MODULES[self.kernels]) else f"needs {MODULES[self.kernels]}, which is not installed"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        check(q, cache)
        sequences = place(k, v, lens, cache)
        if not sequences:
            return torch.zeros_like(q)
        if self.kernels and attention.current_flash_attention_impl() != self.kernels:
            attention.activate_flash_attention_impl(self.kernels)
        room = None if cache is None else cache.k.shape[1]
        at = spans(sequences, room, q.device)
        keys, values, used = (k, v, None) if cache is None else (cache.k.flatten(0, 1), cache.v.flatten(0, 1), at.ends)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # cuDNN, which torch prefers, plans anew for each length
            out: Tensor = _kernel()(
                q, keys, values, at.queries, at.keys, at.longest, room or at.longest,
                window_size=reach(window), enable_gqa=q.shape[1] != k.shape[1], seqused_k=used,
            )  # fmt: skip
        return out


def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@once
def _lacks() -> str | None:
    """What this torch does not have yet."""
    if {"seqused_k", "enable_gqa", "window_size"} <= inspect.signature(_kernel()).parameters.keys():
        return None
    return f"needs torch 2.12, whose kernel reads a cache, and this is {torch.__version__}"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package that should hold it is not there
        return False


def build(config: Config) -> Varlen:
    return Varlen()


EXAMPLE: dict[str, object] = {}
