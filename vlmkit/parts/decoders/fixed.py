"""A decoder's step in shapes that stay. The host reads no number of it: it can be compiled, or captured in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.types import FixedCache

from .bare import Bare
from .rope import angles


class FixedStep:
    """One token for every row of a cache.

    bare    blocks around an attention that takes a FixedCache
    waves   radians per position   [head / 2]
    logits  hidden states of the last block -> [rows, vocab]
    """

    def __init__(self, bare: Bare, embed: nn.Embedding, waves: Tensor, window: int | None,
                 logits: Callable[[Tensor], Tensor]) -> None:
        self.bare, self.embed, self.waves, self.window, self.logits = bare, embed, waves, window, logits
        self.place = embed.weight.data_ptr()
        self._compiled: Callable[..., Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the decoder makes its own

    @property
    def holds(self) -> bool:
        """Whether modules and memory are what they were."""
        return self.bare.holds and self.place == self.embed.weight.data_ptr()

    def __call__(self, numbers: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """-> [rows, vocab]

        numbers       [3, rows]: ids, positions, and 1 for each row that is asked; what others hold stays
        keys, values  of each block, [rows, keys, kv_heads, head]; they get those of the new tokens
        """
        ids, at, live = numbers.unbind()
        x = self.embed(ids)
        place = torch.arange(keys[0].shape[1], device=at.device)
        seen = place <= at[:, None]
        if self.window is not None:
            seen = seen & (place > at[:, None] - self.window)
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=at.device).masked_fill(~seen, -torch.inf)[:, None, None]
        turn = angles(at, self.waves, x.dtype)
        for block, k, v in zip(self.bare.blocks, keys, values, strict=True):
            x = block(x, None, turn, FixedCache(k, v, at, live[:, None, None] > 0, mask))
        return self.logits(x)

    @property
    def compiled(self) -> Callable[..., Tensor]:
        """The same, compiled at its first call. Nothing guards the weights: who calls it asks whether it `holds`."""
        if self._compiled is None:
            own = ("self", "L['self']")
            self._compiled = torch.compile(self.__call__, fullgraph=True, options={
                "guard_filter_fn": lambda guards: [not guard.name.startswith(own) for guard in guards]})
        return self._compiled
