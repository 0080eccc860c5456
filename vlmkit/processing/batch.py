"""Samples to a batch: sequences laid end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import IGNORED, Batch, Sample


def lay(samples: Sequence[Sample]) -> Batch:
    """One row of ids and what belongs to it. Labels appear when at least one sample has some."""
    lens = torch.tensor([len(sample.ids) for sample in samples])
    starts = (lens.cumsum(0) - lens).tolist()
    labels = None
    if any(sample.labels is not None for sample in samples):
        labels = torch.cat([torch.full_like(sample.ids, IGNORED) if sample.labels is None else sample.labels
                            for sample in samples])
    return Batch(
        ids=torch.cat([sample.ids for sample in samples]),
        lens=lens,
        slots=torch.cat([sample.slots + start for sample, start in zip(samples, starts, strict=True)]),
        visuals=[visual for sample in samples for visual in sample.visuals],
        labels=labels,
    )
