"""The fastest backend that can serve: flash, then varlen, then sdpa, which serves everywhere."""

from __future__ import annotations

import logging
from functools import cache as once

import torch
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl

from vlmkit.contracts import AttentionBackend, PartConfig
from vlmkit.types import KVCache

from .flash import Flash
from .kernels import learns
from .sdpa import Sdpa
from .varlen import Varlen

log = logging.getLogger("vlmkit")


class Config(PartConfig):
    """No fields."""


class Auto:
    """Chooses anew when a model was moved or cast, so that it is right wherever that is."""

    fixed = staticmethod(Sdpa.fixed)

    def __init__(self) -> None:
        self.serves: AttentionBackend = Sdpa()
        self.place: tuple[torch.device, torch.dtype, int] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]"""
        place = q.device, q.dtype, q.shape[2]
        if place != self.place:
            self.place, self.serves = place, best(*place)
        serves = Sdpa() if cache is not None and learns(q) else self.serves
        return serves(q, k, v, lens, cache, window)


def best(device: torch.device, dtype: torch.dtype, head: int) -> AttentionBackend:
    """The first that can serve; why those before it could not is logged, once in a process."""
    for name, made in ladder().items():
        if not (why := made.unfit(device, dtype, head)):
            return made
        _tell(f"attention: {name} is passed over: it {why}")
    return Sdpa()


def ladder() -> dict[str, Flash | Varlen]:
    """What is tried before sdpa. Kernels that somebody activated in torch come first; varlen runs on them."""
    rungs: dict[str, Flash | Varlen] = {"flash": Flash(), "varlen": Varlen()}
    if current_flash_attention_impl():
        del rungs["flash"]
    return rungs


@once
def _tell(text: str) -> None:
    log.info(text)


def build(config: Config) -> AttentionBackend:
    """Without a CUDA device there is nothing to choose."""
    return Auto() if torch.cuda.is_available() else best(torch.device("cpu"), torch.float32, 128)


EXAMPLE: dict[str, object] = {}
