"""Next-token cross entropy over the tokens that are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..types import IGNORED, Batch

if TYPE_CHECKING:
    from ..model.vlm import VLM


def loss(model: VLM, batch: Batch) -> Tensor:
    """Mean cross entropy over the learned tokens of a batch; logits are computed for those positions only.   []"""
    at, wanted = targets(batch)
    hidden = model(batch)
    return F.cross_entropy(model.logits(hidden[at]), wanted)


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions that predict a learned token, and that token.   [learned], [learned]"""
    if batch.labels is None:
        raise DataError("the batch has no labels", hint="make it with processor(..., reply=False, labels=True)")
    wanted = torch.full_like(batch.labels, IGNORED)
    wanted[:-1] = batch.labels[1:]
    ends = (batch.lens.cumsum(0) - 1).to(wanted.device)  # a last token must not predict its neighbour's first
    wanted[ends] = IGNORED
    at = (wanted != IGNORED).nonzero().squeeze(1)
    if not len(at):
        raise DataError("nothing in this batch is learned: every label is masked")
    return at, wanted[at]
