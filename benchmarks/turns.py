"""Several turns of one conversation about a picture: each question again with all that was said before.

    python benchmarks/turns.py [--new 16]

One vlmkit engine serves all turns, and goes on from what its cache holds. transformers reads the whole conversation
each turn, as its generate does when it is given messages; its tower runs each time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import Bench
from models import Pair, Talk, pair, same_ids

from vlmkit.generate import Engine, Options

ASKED = ("What is in it?", "Which colour is it?", "What is beside it?", "Tell me more.")
SAID = "It is a picture of many colours, and there is more than one thing in it to be seen."


def conversation(two: Pair, size: tuple[int, int]) -> list[Talk]:
    """The same conversation after one, two, three and four questions; answers are given, so that both read alike."""
    whole = two.ask(size, words=ASKED[0])
    turns = [whole.turns]
    for question in ASKED[1:]:
        turns.append((*turns[-1], SAID, question))
    return [Talk(some, whole.media) for some in turns]


def ours(two: Pair, talks: list[Talk], new: int) -> list[list[int]]:
    engine = Engine(two.model, two.processor, rows=2)
    options = Options(max_new_tokens=new, ignore_eos=True)
    said = []
    for talk in talks:
        request: Any = engine.submit(talk.messages, options)
        while engine.busy:
            engine.step()
        said.append(request.ids)
    return said


def one_by_one(two: Pair, talks: list[Talk], new: int) -> list[list[int]]:
    return [two.their_answer([talk], new)[0] for talk in talks]


def main() -> None:
    bench = Bench("turns", __doc__, lambda ask: ask.add_argument("--new", type=int, default=16))
    gpu, new = bench.options.device != "cpu", bench.options.new
    sizes = {"7b": (480, 640)} if gpu else {"tiny": (100, 140)} if bench.options.quick else {
        "tiny": (100, 140), "small": (336, 448)}
    for size, shown in sizes.items():
        for family in ("llava", "next", "onevision"):
            two = pair(family, size, torch.bfloat16 if gpu else torch.float32, bench.options.device)
            talks = conversation(two, shown)
            bench.row(f"{family} {size}, {len(talks)} turns, {new} new each", {
                "vlmkit": partial(ours, two, talks, new),
                "transformers": partial(one_by_one, two, talks, new)},
                same=None if gpu else same_ids, turns=None if size == "tiny" else 3)  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
