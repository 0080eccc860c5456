"""How many answers are right. One forward pass tells for a whole batch, without generating."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

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
        batch = processor([conversation for _, conversation in some], reply=False, labels=True)
        for (skill, _), right in zip(some, _right(model, batch), strict=True):
            before = marks.get(skill, (0, 0))
            marks[skill] = before[0] + right, before[1] + 1
    model.train(training)
    return dict(sorted(marks.items()))


@torch.no_grad()
def _right(model: VLM, batch: Batch) -> Iterator[bool]:
    at, wanted = targets(batch)
    correct = model.logits(model(batch)[at]).argmax(-1) == wanted
    ends = batch.lens.cumsum(0)
    owner = torch.bucketize(at.cpu(), ends, right=True)
    for i in range(len(batch.lens)):
        yield bool(correct.cpu()[owner == i].all())


def tell(marks: dict[str, tuple[int, int]]) -> str:
    """The marks as a table, the whole last."""
    right, asked = (sum(column) for column in zip(*marks.values(), strict=True))
    rows = [*marks.items(), ("all", (right, asked))]
    return "\n".join(f"{skill:<12} {100 * r / n:5.1f} %  of {n}" for skill, (r, n) in rows)
