"""Next-token cross entropy over the tokens that are learned, some of them at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import DataError
from ..types import IGNORED, Batch

if TYPE_CHECKING:
    from ..model.vlm import VLM

NUMBERS = 1 << 25  # logits that are held at once, and as many gradients: 2 x 128 MiB of float32


def loss(model: VLM, batch: Batch, total: int | None = None, chunk: int | None = None) -> Tensor:
    """Mean cross entropy over the learned tokens of a batch.   []

    total   what the sum is divided by, where the batch is a part of a larger one
    chunk   positions whose logits are held at once
    """
    at, wanted = targets(batch)
    if not len(at) and total is None:
        raise DataError("nothing in this batch is learned: every label is masked")
    hidden, size = model(batch)[at], chunk or max(1, NUMBERS // model.decoder.vocab)
    if not torch.is_grad_enabled():
        some = zip(hidden.split(size), wanted.split(size), strict=True)
        parts = [F.cross_entropy(model.logits(states), right, reduction="sum") for states, right in some]
        return torch.stack(parts).sum() / (total or len(at))
    decoder: Any = model.decoder
    inside = {id(p) for block in decoder.blocks for p in block.parameters()}
    ends = [p for p in decoder.parameters() if p.requires_grad and id(p) not in inside]
    value: Tensor = Entropy.apply(model, hidden, wanted, total or len(at), size, *ends)
    return value


class Entropy(torch.autograd.Function):
    """Cross entropy, with its gradients at once: no logits are kept for the way back, and none are computed twice."""

    @staticmethod
    def forward(ctx: Any, model: VLM, hidden: Tensor, wanted: Tensor, total: int, size: int, *ends: Tensor) -> Tensor:
        """[learned, width], [learned] -> []   ends: weights before and behind the blocks, the head's among them"""
        value, slopes, rest = torch.zeros((), device=hidden.device), list[Tensor](), list[Any]([None] * len(ends))
        for states, right in zip(hidden.split(size), wanted.split(size), strict=True):
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                logits = model.logits(states)
            pull = logits.detach().log_softmax(-1)
            value += F.nll_loss(pull, right, reduction="sum")
            pull.exp_().scatter_add_(1, right[:, None], pull.new_full((len(right), 1), -1)).div_(total)
            slope, *more = torch.autograd.grad(logits, [states, *ends], pull, allow_unused=True)
            slopes.append(slope)
            rest = [b if a is None else a.add_(b) for a, b in zip(rest, more, strict=True)]
        ctx.save_for_backward(torch.cat(slopes), *rest)
        return value / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        slope, *rest = (None if found is None else found.mul_(pull) for found in ctx.saved_tensors)
        return None, slope, None, None, None, *rest


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions that predict a learned token, and that token.   [learned], [learned]"""
    if batch.labels is None:
        raise DataError("the batch has no labels", hint="make it with processor(..., reply=False, labels=True)")
    wanted = torch.full_like(batch.labels, IGNORED)
    wanted[:-1] = batch.labels[1:]
    ends = (batch.lens.cumsum(0) - 1).to(wanted.device)  # a last token must not predict its neighbour's first
    wanted[ends] = IGNORED
    at = (wanted != IGNORED).nonzero().squeeze(1)
    return at, wanted[at]


def learned(batch: Batch) -> int:
    """How many tokens of a batch are learned."""
    return len(targets(batch)[0])
