"""What one forward pass tells about answers that are known: how many are right, and which is the likeliest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..types import Batch
from .loss import targets

if TYPE_CHECKING:
    from ..model.vlm import VLM
    from ..processing.processor import Processor

Conversation = list[dict[str, Any]]


def exam(model: VLM, processor: Processor, questions: Iterable[tuple[str, Conversation]],
         size: int = 32) -> dict[str, tuple[int, int]]:
    """Exact match by skill, for conversations that end with the right answer.   skill -> (right, asked)

    An answer counts when every token of it, the closing one too, is the most likely one after the true tokens
    before it. That is so exactly when greedy decoding would give this answer.
    """
    marks: dict[str, tuple[int, int]] = {}
    training, rest = model.training, iter(questions)
    model.eval()
    while some := list(islice(rest, size)):
        logits, wanted, owner = _read(model, processor, [conversation for _, conversation in some])
        wrong = owner[logits.argmax(-1) != wanted].tolist()
        for at, (skill, _) in enumerate(some):
            before = marks.get(skill, (0, 0))
            marks[skill] = before[0] + (at not in wrong), before[1] + 1
    model.train(training)
    return dict(sorted(marks.items()))


def likeliest(model: VLM, processor: Processor, conversations: Sequence[Conversation]) -> int:
    """Which of several endings of one conversation has the largest probability, its closing token included."""
    logits, wanted, owner = _read(model, processor, conversations)
    each = logits.log_softmax(-1).gather(1, wanted[:, None]).squeeze(1)
    return int(each.new_zeros(len(conversations)).index_add(0, owner, each).argmax())


@torch.no_grad()
def _read(model: VLM, processor: Processor, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits where answers stand, the tokens that stand there, and whose they are.   [learned, vocab], [learned] x 2"""
    batch: Batch = processor(list(conversations), reply=False, labels=True)
    batch = batch.to(next(model.parameters()).device)
    at, wanted = targets(batch)
    owner = torch.bucketize(at, batch.lens.cumsum(0).to(at.device), right=True)
    return model.logits(model(batch)[at]), wanted, owner


def tell(marks: dict[str, tuple[int, int]]) -> str:
    """The marks as a table, the whole last."""
    right, asked = (sum(column) for column in zip(*marks.values(), strict=True))
    rows = [*marks.items(), ("all", (right, asked))]
    return "\n".join(f"{skill:<12} {100 * r / n:5.1f} %  of {n}" for skill, (r, n) in rows)
