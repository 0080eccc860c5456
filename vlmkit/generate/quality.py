"""What few bits, or a half type, change in what a model says: its logits and its greedy tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .answer import generate


class Said(NamedTuple):
    """A greedy answer, and what every token of some answer was chosen from.   logits [tokens, vocab]"""

    ids: list[int]
    logits: Tensor


class Drift(NamedTuple):
    """How far an answer is from that of whole weights."""

    tokens: int  # of the whole weights' answer
    logits: float  # the largest difference
    divergence: float  # of the distributions (Kullback-Leibler, nats), mean over places
    chosen: float  # share of places where both choose the same token, after the same words
    same: int  # tokens before the two answers part


def say(model: Any, processor: Any, conversations: list[Any], tokens: int = 32,
        like: list[Said] | None = None) -> list[Said]:
    """Greedy answers, and logits at every place of them; of the answers in `like`, where those are given."""
    answers = generate(model, processor, conversations, max_new_tokens=tokens, details=True)
    read = like or answers
    return [Said(a.ids, _logits(model, processor, c, other.ids))
            for a, c, other in zip(answers, conversations, read, strict=True)]


def drift(whole: Said, other: Said) -> Drift:
    """What changed; `other` was asked to read the answer of `whole`."""
    ours, theirs = whole.logits.log_softmax(-1), other.logits.log_softmax(-1)
    pairs = zip(whole.ids, other.ids, strict=False)
    alike = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(whole.ids), len(other.ids)))
    return Drift(
        tokens=len(whole.ids),
        logits=(whole.logits - other.logits).abs().max().item(),
        divergence=(ours.exp() * (ours - theirs)).sum(-1).clamp(min=0).mean().item(),
        chosen=(ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
        same=alike,
    )


def _logits(model: Any, processor: Any, conversation: Any, ids: list[int]) -> Tensor:
    """Read a conversation and an answer once.   float32 [len(ids), vocab], on the host"""
    batch = processor([conversation])
    said = torch.tensor(ids[:-1], dtype=batch.ids.dtype)  # nothing follows the last one
    whole = batch._replace(ids=torch.cat([batch.ids, said]), lens=batch.lens + len(said), labels=None)
    with torch.inference_mode():
        hidden = model(whole.to(next(model.parameters()).device))
        logits: Tensor = model.logits(hidden[-len(ids) :]).float().cpu()
    return logits[:, : processor.tokenizer.size]
