"""A training step over a mixed batch: conversations laid end to end, against rows padded to the longest.

    python benchmarks/packing.py [--device cuda]

A LLaVA-NeXT with a light tower of 168 pixels, frozen, and a Llama decoder of width 512, random weights. A step is the
loss and its gradients; both sides have the same weights, ids, labels and pixels, and losses and gradients are compared
first. transformers pads to the longest row and makes logits for every position; vlmkit lays the rows end to end and
makes logits where something is learned. The cases differ in how unequal the rows are; in the last one they are equal.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import Bench
from models import Pair, Shape, Talk, pair
from torch.nn.utils.rnn import pad_sequence

from vlmkit.train.loss import loss
from vlmkit.types import IGNORED

SHAPE = Shape((256, 4, 4), (168, 182), 512, 8, 8, 8, 1536, 8192)
LIGHT = Shape((64, 3, 2), (56, 76), 128, 4, 4, 2, 256, 1024)
ASK, SAY = "What is it?", "A wide field, and a tree that stands alone."


def talk(two: Pair, *sizes: tuple[int, int], times: int = 1) -> Talk:
    """A question about pictures of these sizes, with an answer."""
    asked = two.ask(*sizes, words=ASK)
    return Talk((*asked.turns, SAY, *(turn for _ in range(times - 1) for turn in (ASK, SAY))), asked.media)


def padded(two: Pair, batch: Any, talks: list[Talk]) -> dict[str, Any]:
    """The same batch as transformers' model takes it: a row for each conversation, padded on the right."""
    lens = batch.lens.tolist()
    rows = {"input_ids": (batch.ids, 0), "labels": (batch.labels, IGNORED),
            "attention_mask": (torch.ones_like(batch.ids), 0)}  # fmt: skip
    given = {name: pad_sequence(list(values.split(lens)), True, fill) for name, (values, fill) in rows.items()}
    if images := [image for one in talks for image in one.images]:
        made = two.reader.image_processor(images=images, return_tensors="pt")
        given |= {name: made[name] for name in ("pixel_values", "image_sizes") if name in made}
    return {name: value.to(two.theirs.device, two.theirs.dtype if value.is_floating_point() else None)
            for name, value in given.items()}


def learn(two: Pair) -> None:
    """Projector and decoder learn, the tower does not; on both sides."""
    for model, tower in ((two.model, "tower."), (two.theirs, "vision_tower")):
        for name, weight in model.named_parameters():
            weight.requires_grad_(tower not in name)


def ours(two: Pair, batch: Any) -> tuple[float, float]:
    two.model.zero_grad()
    value = loss(two.model, batch)
    value.backward()
    return value.item(), two.model.decoder.blocks[0].attn.q.weight.grad.float().norm().item()


def theirs(two: Pair, given: dict[str, Any]) -> tuple[float, float]:
    two.theirs.zero_grad()
    value = two.theirs(**given, use_cache=False).loss
    value.backward()
    first = two.theirs.model.language_model.layers[0].self_attn.q_proj.weight
    return value.item(), first.grad.float().norm().item()


def same(tolerance: float, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=tolerance, atol=0)


def main() -> None:
    bench = Bench("packing", __doc__)
    device = bench.options.device
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    two = pair("next", LIGHT if bench.options.quick else SHAPE, dtype, device)
    learn(two)
    side = two.side
    small, large, wide = (side, side), (2 * side, 2 * side), (side, 3 * side)
    cases = {"text, small, large, two pictures": [(), (small,), (large,), (small, wide)],
             "seven texts, one large picture": [*[()] * 7, (large,)],
             "four large pictures, equal rows": [(large,)] * 4}  # fmt: skip
    for name, sizes in cases.items():
        talks = [talk(two, *some, times=1 + at % 3 if some == () else 1) for at, some in enumerate(sizes)]
        batch = two.processor([one.messages for one in talks], reply=False, labels=True)
        lens = batch.lens.tolist()
        batch = batch.to(device)
        sides = {"vlmkit": partial(ours, two, batch), "transformers": partial(theirs, two, padded(two, batch, talks))}
        share = 1 - sum(lens) / (len(lens) * max(lens))
        bench.row(f"{name}: {sum(lens)} tokens, {share:.0%} padding", sides, memory=True,
                  same=partial(same, 1e-3 if dtype == torch.float32 else 0.05))
    bench.end()


if __name__ == "__main__":
    main()
