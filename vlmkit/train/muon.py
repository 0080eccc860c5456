"""Muon in float32. Torch's own works in bfloat16, which a processor without it emulates at a fifteenth of the speed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .parallel import like, whole


class Muon(Optimizer):
    """Momentum whose update is made orthogonal (Jordan 2024), sized like AdamW's (Liu 2025), for matrices only."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                seen = self.state[p].setdefault("momentum", torch.zeros_like(p))
                seen.lerp_(p.grad, 1 - group["momentum"])
                alike[p.shape].append((p, whole(p.grad.lerp(seen, group["momentum"])), group))
        for shape, members in alike.items():  # matrices of one shape in one call
            updates = orthogonal(torch.stack([update for _, update, _ in members]))
            for (p, _, group), update in zip(members, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(like(update, p), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(m: Tensor, turns: int = 5) -> Tensor:
    """Nearly the closest orthogonal matrices, by Newton and Schulz.   [many, rows, cols] -> the same"""
    tall = m.shape[1] > m.shape[2]
    x = m.transpose(1, 2) if tall else m
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(turns):
        a = x @ x.transpose(1, 2)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.transpose(1, 2) if tall else x
