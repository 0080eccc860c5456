"""A batch of unequal prompts, answered whole: a picture, a text, two pictures in one prompt, and a flat picture.

    python benchmarks/mixed_batch.py [--new 16]

A LLaVA-NeXT with CLIP-L/14 at 336 pixels, 2 blocks deep, and a Llama decoder of width 512 and 8 layers, random weights:
rows of 2379, 37, 4328 and 615 ids. So light a tower still takes half of the work; beside a decoder of 7 B it is a
sixteenth, and there is nothing in it that padding makes longer. transformers pads to the longest; vlmkit lays the
prompts end to end. The cases that follow make the batch longer in one row only: what time follows, real tokens or the
longest row, is seen in them.
"""

from __future__ import annotations

from functools import partial

import floor
import torch
from measure import Bench
from models import Pair, Shape, Talk, pair, same_ids

LARGE, FLAT, TWO = ((480, 640),), ((8, 672),), ((480, 640), (600, 1000))
ASK = "What is it?"


def rows(two: Pair) -> list[Talk]:
    return [two.ask(*LARGE, words=ASK), Talk(("Tell a story.",)), two.ask(*TWO, words=ASK), two.ask(*FLAT, words=ASK)]


def lens(two: Pair, asked: list[Talk]) -> list[int]:
    return [int(n) for n in two.processor([talk.messages for talk in asked]).lens]


def main() -> None:
    bench = Bench("mixed_batch", __doc__, lambda ask: ask.add_argument("--new", type=int, default=16))
    gpu, new = bench.options.device != "cpu", bench.options.new
    dtype = torch.bfloat16 if gpu else torch.float32
    light = Shape((256, 4, 4), (336, 384), 256, 4, 4, 4, 512, 1024)  # the same lengths in a few seconds
    two = pair("next", "7b" if gpu else light if bench.options.quick else "mixed", dtype, bench.options.device)
    machine = floor.measure(dtype, bench.options.device)
    whole = rows(two)
    text = whole[1]
    cases = {"picture, text, two pictures, flat picture": whole, "without the longest": [*whole[:2], whole[3]],
             "the text four times": [text] * 4, "the text three times, one picture": [text, text, text, whole[0]]}
    for name, asked in cases.items():
        found = lens(two, asked)
        tiles = sum(v.layout.tiles for v in two.processor([talk.messages for talk in asked]).visuals)
        least = machine.prefill(two.model, found) + (machine.vision(two.model, tiles) if tiles else 0)
        least += (new - 1) * machine.decode(two.model, found)
        bench.row(f"{name}: {', '.join(map(str, found))}", {
            "vlmkit": partial(two.answer, asked, new),
            "transformers": partial(two.their_answer, asked, new)},
            same=None if gpu else same_ids, floor=least, turns=3)  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
