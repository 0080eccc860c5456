"""The next token: penalties, temperature, top-k and top-p, each request with its own source of chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PromptError


class Sampling(NamedTuple):
    """How a request chooses. A temperature of 0 takes the best token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    repetition_penalty: float = 1.0
    seed: int | None = None  # None: drawn from torch's own generator

    def check(self) -> Sampling:
        """The same, or an error that names the field."""
        number(self.temperature, "temperature", lambda x: 0 <= x < inf, "a number of at least 0")
        number(self.top_p, "top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        number(self.top_k, "top_k", lambda x: x >= 0, "a whole number of at least 0", whole=True)
        number(self.repetition_penalty, "repetition_penalty", lambda x: 0 < x < inf, "a number above 0")
        if self.seed is not None:
            number(self.seed, "seed", lambda x: 0 <= x < 2**63, "a whole number from 0 to 2**63 - 1", whole=True)
        return self

    def generator(self) -> torch.Generator | None:
        """The request's own, on the host: what others draw never changes its answer. None when nothing is drawn."""
        if self.temperature == 0:
            return None
        seed = self.seed if self.seed is not None else int(torch.randint(2**62, ()))
        return torch.Generator("cpu").manual_seed(int(seed))


def number(value: Any, name: str, holds: Callable[[Any], bool], wanted: str, whole: bool = False) -> None:
    """Refuse what is no number, or not one that `holds`; numpy's are welcome."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or not holds(value):
        raise PromptError(f"expected {wanted}, got {str(value)[:80]!r}", where=name)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Push tokens that have been seen away from the top.   logits [vocab]   seen [any] -> [vocab]"""
    seen = seen[seen < len(logits)]
    found = logits[seen]
    return logits.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def keep_best(logits: Tensor, count: int) -> Tensor:
    """Only the `count` best stay, and whatever equals the last of them.   [vocab] -> [vocab]"""
    if not 0 < count < len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(count).values[-1], -torch.inf)


def keep_mass(logits: Tensor, share: float) -> Tensor:
    """Only the smallest set of best tokens whose probabilities reach `share` stays.   [vocab] -> [vocab]"""
    if share >= 1:
        return logits
    rising, order = logits.sort()
    drop = rising.softmax(-1).cumsum(-1) <= 1 - share
    drop[-1] = False
    return logits.masked_fill(drop.new_empty(drop.shape).index_copy(0, order, drop), -torch.inf)


def draw(logits: Tensor, how: Sampling, seen: Sequence[int], generator: torch.Generator | None) -> int:
    """One token.   logits [vocab], float32; `seen` are the ids so far; without a generator the best is taken"""
    if how.repetition_penalty != 1:
        logits = penalize(logits, torch.tensor(seen, device=logits.device), how.repetition_penalty)
    if generator is not None:
        likely = keep_mass(keep_best(logits / how.temperature, how.top_k), how.top_p).softmax(-1).cpu()
        if likely.isfinite().all():  # what overflowed keeps its best token and stops nobody else
            return int(torch.multinomial(likely, 1, generator=generator))
    return int(logits.argmax())
