"""Samples to a batch: sequences laid end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import IGNORED, Batch, Sample


def lay(samples: Sequence[Sample]) -> Batch:
    """One row of ids and what belongs to it. Labels appear when at least one sample has some."""
    ids: list[int] = []
    slots: list[int] = []
    labels: list[int] = []
    for sample in samples:
        slots += [len(ids) + slot for slot in sample.slots]
        ids += sample.ids
        labels += sample.labels if sample.labels is not None else [IGNORED] * len(sample.ids)
    learned = any(sample.labels is not None for sample in samples)
    return Batch(
        ids=torch.tensor(ids, dtype=torch.long),
        lens=torch.tensor([len(sample.ids) for sample in samples], dtype=torch.long),
        slots=torch.tensor(slots, dtype=torch.long),
        visuals=[visual for sample in samples for visual in sample.visuals],
        labels=torch.tensor(labels, dtype=torch.long) if learned else None,
    )
