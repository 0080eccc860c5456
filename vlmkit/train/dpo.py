"""Preference tuning: DPO (Rafailov et al. 2023), pairs of answers against the model that the stage begins with."""

from __future__ import annotations

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
    margins    [pairs]  of the last step: how much more the chosen answers gained, times beta
    """

    def __init__(self, beta: float, reference: Tensor) -> None:
        self.beta, self.reference = beta, reference
        self.margins = torch.empty(0)

    def __call__(self, model: VLM, batch: Batch, held: list[int]) -> Tensor:
        """Mean over the pairs of a batch.   []   held: the conversations it was made of"""
        reference = self.reference[held]
        if late := [index for index, row in zip(held, reference.tolist(), strict=True) if UNSEEN in row]:
            raise DataError(f"conversations {late} could not be read when the stage began, and now they can: their "
                            "reference is missing", where="data", hint="start the stage again")
        value, self.margins = dpo(logps(model, batch).view(-1, 2), reference.to(batch.ids.device), self.beta)
        return value

    def told(self) -> tuple[float, float]:
        """Of the last step: the mean margin, and the share of pairs whose chosen answer gained more."""
        return self.margins.mean().item(), (self.margins > 0).float().mean().item()


def dpo(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected -> the mean loss, and the margins.   2 x [pairs, 2] -> [], [pairs]"""
    chosen, rejected = (policy - reference).unbind(1)
    margins = beta * (chosen - rejected)
    return -F.logsigmoid(margins).mean(), margins.detach()


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
def refer(learner: Learner, feed: Feed, device: torch.device) -> Tensor:
    """What the model says of each pair before it learns, in one pass over the data.   [conversations, 2]"""
    model, found = learner.model, torch.full((len(feed.data), 2), UNSEEN)
    modes = {part: part.training for part in model.modules()}
    model.eval()
    for p in learner.weights.values():
        p.requires_grad_(True)  # so that no tower that is going to learn is taken for a frozen one
    for batch in feed:
        found[feed.held] = logps(model, batch.to(device)).view(-1, 2).cpu()
        if feed.at >= len(feed.data):
            break
    for p in learner.weights.values():
        p.requires_grad_(False)
    for part, mode in modes.items():
        part.training = mode
    return found
