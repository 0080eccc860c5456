"""Next-token cross entropy over the tokens that are learned, some of them at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import DataError
from ..types import IGNORED, Batch

if TYPE_CHECKING:
    from ..model.vlm import VLM

NUMBERS = 1 << 26  # logits that are held at once: 256 MiB of float32


def loss(model: VLM, batch: Batch, total: int | None = None, chunk: int | None = None) -> Tensor:
    """Mean cross entropy over the learned tokens of a batch.   []

    total   what the sum is divided by, where the batch is a part of a larger one
    chunk   positions whose logits are held at once; the others' are computed again for their gradients
    """
    at, wanted = targets(batch)
    if not len(at) and total is None:
        raise DataError("nothing in this batch is learned: every label is masked")
    hidden = model(batch)[at]
    size = chunk or max(1, NUMBERS // model.decoder.vocab)
    if len(at) <= size:
        return _some(model, hidden, wanted) / (total or len(at))
    parts = [checkpoint(_some, model, some, right, use_reentrant=False, preserve_rng_state=False)
             for some, right in zip(hidden.split(size), wanted.split(size), strict=True)]
    return torch.stack(parts).sum() / (total or len(at))


def _some(model: VLM, hidden: Tensor, wanted: Tensor) -> Tensor:
    """[positions, width], [positions] -> []"""
    return F.cross_entropy(model.logits(hidden), wanted, reduction="sum")


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
