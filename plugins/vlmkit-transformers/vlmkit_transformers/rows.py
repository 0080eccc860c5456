"""Between vlmkit's rows, which have no padding, and the padded batches of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmkit.types import IGNORED, Layout, Sample, Visual

KINDS = {"image": (1, "pixel_values"), "video": (2, "pixel_values_videos")}  # number in a tensor, name of the pixels


def pad(samples: Sequence[Sample], pad_id: int, count: Callable[[Layout], int]) -> dict[str, Tensor]:
    """Samples as a batch, padded on the left.

    input_ids, attention_mask  [batch, length]
    mm_token_type_ids          [batch, length]  1 where a picture stands, 2 where a clip does
    pixel_values, pixel_values_videos  uint8 [batch, most tiles, 3, side, side]
    layouts                    [batch, most visuals, 6]  kind, height, width, rows, cols, frames; 0 where there is none
    labels                     [batch, length], when a sample has some
    """
    shape = len(samples), max(len(sample.ids) for sample in samples)
    made = {"input_ids": torch.full(shape, pad_id), "attention_mask": torch.zeros(shape, dtype=torch.long),
            "mm_token_type_ids": torch.zeros(shape, dtype=torch.long)}  # fmt: skip
    if any(sample.labels is not None for sample in samples):
        made["labels"] = torch.full(shape, IGNORED)
    for row, sample in enumerate(samples):
        start = shape[1] - len(sample.ids)
        made["input_ids"][row, start:] = sample.ids
        made["attention_mask"][row, start:] = 1
        kinds = [KINDS[v.layout.kind][0] for v in sample.visuals for _ in range(count(v.layout))]
        made["mm_token_type_ids"][row, start + sample.slots] = torch.tensor(kinds, dtype=torch.long)
        if sample.labels is not None:
            made["labels"][row, start:] = sample.labels
    visuals = [sample.visuals for sample in samples]
    if any(visuals):
        told = [[[KINDS[v.layout.kind][0], *v.layout[1:]] for v in row] for row in visuals]
        made["layouts"] = _stack([torch.tensor(row) for row in told])
    for kind, (_, name) in KINDS.items():
        pixels = [[v.pixels for v in row if v.layout.kind == kind] for row in visuals]
        if any(pixels):
            made[name] = _stack([torch.cat(row) if row else torch.empty(0) for row in pixels])
    return made


def _stack(rows: list[Tensor]) -> Tensor:
    """Tensors of different lengths, one upon the other, the shorter ones filled up with zeros."""
    like = next(row for row in rows if len(row))
    out = like.new_zeros(len(rows), max(map(len, rows)), *like.shape[1:])
    for at, row in enumerate(rows):
        if len(row):
            out[at, : len(row)] = row
    return out


def visuals(layouts: Tensor | None, **pixels: Tensor | None) -> list[Visual]:
    """The pictures and clips of a batch, in reading order; none when no pixels came, as in a step behind the prompt."""
    if layouts is None or all(tiles is None for tiles in pixels.values()):
        return []
    kinds: dict[int, Any] = {number: kind for kind, (number, _) in KINDS.items()}
    found = []
    for row, told in enumerate(layouts.tolist()):
        taken = dict.fromkeys(pixels, 0)
        for number, *sizes in (one for one in told if one[0]):
            layout, name = Layout(kinds[number], *sizes), KINDS[kinds[number]][1]
            tiles = pixels[name]
            assert tiles is not None
            found.append(Visual(tiles[row, taken[name] : taken[name] + layout.tiles], layout))
            taken[name] += layout.tiles
    return found
