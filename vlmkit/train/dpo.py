"""Preference tuning: DPO (Rafailov et al. 2023), pairs of answers against the model that the stage begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import DataError
from ..types import Batch
from .data import Feed
from .loss import NUMBERS, targets
from .stages import Learner

if TYPE_CHECKING:
    from ..model.vlm import VLM

UNSEEN = 1.0  # where there is no log-probability: those are never above 0, and a save holds numbers only


class Preference:
    """The loss of a stage that prefers.

    reference  [conversations, 2]  log-probabilities of chosen and rejected, float32; UNSEEN where there is none
    said    what the pairs here add to the last step's mean margin, and to its share whose chosen answer gained more
    """

    def __init__(self, beta: float, reference: Tensor) -> None:
        self.beta, self.reference = beta, reference
        self.said = 0.0, 0.0

    def __call__(self, model: VLM, batch: Batch, held: list[int], total: int) -> Tensor:
        """Mean over the pairs of a step.   []   held: the conversations of the batch; total: pairs on all processes"""
        reference = self.reference[held]
        if late := [index for index, row in zip(held, reference.tolist(), strict=True) if UNSEEN in row]:
            raise DataError(f"conversations {late} could not be read when the stage began, and now they can: their "
                            "reference is missing", where="data", hint="start the stage again")
        policy = logps(model, batch)[: 2 * len(held)].view(-1, 2)
        values, margins = dpo(policy, reference.to(policy.device), self.beta)
        self.said = margins.sum().item() / total, (margins > 0).sum().item() / total
        return values.sum() / total


def dpo(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected -> losses and margins.   2 x [pairs, 2] -> 2 x [pairs]"""
    chosen, rejected = (policy - reference).unbind(1)
    margins = beta * (chosen - rejected)
    return -F.logsigmoid(margins), margins.detach()


def logps(model: VLM, batch: Batch, chunk: int | None = None) -> Tensor:
    """Summed log-probability of what is learned of each sequence.   [sequences], float32

    What both answers of a pair see is encoded once. chunk: positions whose logits are held at once
    """
    at, wanted = targets(batch)
    once = {id(visual.pixels): visual for visual in batch.visuals}
    seen = dict(zip(once, model.encode(list(once.values())), strict=True))
    x = model.splice(batch.ids, batch.slots, [seen[id(visual.pixels)] for visual in batch.visuals])
    hidden = model.decoder(x, batch.lens, None)[at]
    size = chunk or max(1, NUMBERS // model.decoder.vocab)
    parts = [checkpoint(_each, model, some, right, use_reentrant=False, preserve_rng_state=False)
             for some, right in zip(hidden.split(size), wanted.split(size), strict=True)]
    owner = torch.repeat_interleave(batch.lens).to(at.device)[at]
    return torch.zeros(len(batch.lens), device=at.device).index_add(0, owner, torch.cat(parts))


def _each(model: VLM, hidden: Tensor, wanted: Tensor) -> Tensor:
    """[positions, width], [positions] -> [positions]"""
    return -F.cross_entropy(model.logits(hidden), wanted, reduction="none")


@torch.no_grad()
def refer(learner: Learner, feed: Feed, say: Callable[[Batch], Tensor], ready: Callable[[Batch], Batch]) -> Tensor:
    """What the model says of each pair before it learns, in one pass over the data.   [conversations, 2]

    say    a batch that is `ready` -> `logps`. UNSEEN stands where another process read
    """
    model, found = learner.model, torch.full((len(feed.data), 2), UNSEEN)
    modes = {part: part.training for part in model.modules()}
    model.eval()
    for p in learner.weights.values():
        p.requires_grad_(True)  # so that no tower that is going to learn is taken for a frozen one
    for batch in feed:
        found[feed.held] = say(ready(batch))[: 2 * len(feed.held)].view(-1, 2).cpu()
        if feed.at >= len(feed.data):
            break
    for p in learner.weights.values():
        p.requires_grad_(False)
    for part, mode in modes.items():
        part.training = mode
    return found
