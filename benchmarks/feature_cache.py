"""The align stage with and without what the frozen tower saw: only the projector learns.

    python benchmarks/feature_cache.py

A LLaVA-1.5 with a CLIP-B-like tower at 336 pixels, 12 blocks, and a decoder of width 512 and 4 layers, random weights.
"none" is vlmkit without the cache. "an epoch that was seen" finds every tile; "three epochs from nothing" pays for the
first one: the digests, the files and their sync. Losses and gradients are compared first.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Bench
from models import SIZES, Pair, Shape, Talk, pair

from vlmkit.compose.bind import compose
from vlmkit.train.features import keeping
from vlmkit.train.loss import loss

SHAPE = Shape((768, 12, 12), (336, 384), 512, 4, 8, 8, 1536, 1024)
LEARNS = ("data={use: scenes}", "train={projector: 1.0e-3}", "steps=1", 'machine.features="on"')


def step(model: Any, batch: Any) -> tuple[float, float]:
    model.zero_grad()
    value = loss(model, batch)
    value.backward()
    return value.item(), sum(p.grad.double().norm().item() for p in model.projector.parameters())


def plain(model: Any, batches: list[Any], epochs: int = 1) -> list[tuple[float, float]]:
    return [step(model, batch) for _ in range(epochs) for batch in batches]


def kept(model: Any, run: Any, folder: Path | None, batches: list[Any], epochs: int = 1) -> list[tuple[float, float]]:
    with tempfile.TemporaryDirectory() as new, keeping(model, run, folder or Path(new)):
        return plain(model, batches, epochs)


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=0)


def epoch(two: Pair, pictures: int, size: int) -> list[Any]:
    """Batches of so many conversations, each about a picture of its own."""
    asked = [two.ask((two.side, two.side), seed=at) for at in range(pictures)]
    talks = [Talk((*one.turns, "A wide field."), one.media).messages for one in asked]
    return [two.processor(talks[at : at + size], reply=False, labels=True) for at in range(0, pictures, size)]


def main() -> None:
    bench = Bench("feature_cache", __doc__)
    two = pair("llava", SIZES["tiny"] if bench.options.quick else SHAPE)
    two.model.requires_grad_(False).eval()
    two.model.projector.requires_grad_(True)
    run = compose(two.processor.preset, *LEARNS)
    batches = epoch(two, 8, 4)
    with tempfile.TemporaryDirectory() as folder:
        kept(two.model, run, Path(folder), batches)
        bench.row("an epoch that was seen, 8 pictures", {
            "vlmkit": partial(kept, two.model, run, Path(folder), batches),
            "none": partial(plain, two.model, batches)}, same=same)  # fmt: skip
    bench.row("three epochs from nothing, 8 pictures", {
        "vlmkit": partial(kept, two.model, run, None, batches, 3),
        "none": partial(plain, two.model, batches, 3)}, same=same)  # fmt: skip
    bench.end()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
