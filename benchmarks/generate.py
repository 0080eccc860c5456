"""The whole of generate, from pictures and words to ids: five families, one conversation and four of them.

    python benchmarks/generate.py [--size small] [--device cuda]

Weights, prompts and pixels are the same. Answers in float32 are checked to be equal token by token; in bfloat16 the
logits behind the prompts are. vlmkit runs as it is, and with its compiled step of fixed shapes; transformers as it
comes, and with a static cache and a compiled step. What is compiled is compiled before the timing. Pictures go through
its processor for PIL, whose values equal ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from measure import Bench, Side
from models import FAMILIES, Pair, Talk, pair, same_ids

CLIPS = ("next-video", "onevision", "video-llava")
PICTURES = {"tiny": (100, 140), "small": (336, 448)}
NEW = {"tiny": 32, "small": 16, "0.5b": 64, "7b": 64}


def compiled() -> dict[str, Any]:
    """transformers' best: what its generate compiles by itself on a GPU only."""
    how = transformers.CompileConfig(mode="default", fullgraph=False)
    how._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": how}


def talks(two: Pair, kind: str, size: str, count: int) -> list[Talk]:
    """So many conversations of equal length: padding is another stage's matter."""
    if kind == "clip":
        return [two.ask_clip(8, seed=seed) for seed in range(1, count + 1)]
    return [two.ask(PICTURES.get(size, (480, 640)), seed=seed) for seed in range(1, count + 1)]


def cells(bench: Bench, two: Pair, size: str, dtype: torch.dtype) -> None:
    new = NEW[size]
    exact = dtype == torch.float32
    for kind in ("picture", *(["clip"] if two.family in CLIPS else [])):
        for count in (1, 4) if size == "tiny" or dtype != torch.float32 else (1,):
            asked = talks(two, kind, size, count)
            sides: dict[str, Side] = {"vlmkit": partial(two.answer, asked, new),
                                      "transformers": partial(two.their_answer, asked, new)}
            if not exact:
                two.check(asked)
            name = f"{two.family} {size}, {kind}, batch {count}, {new} new"
            row = partial(bench.row, same=same_ids if exact else None, turns=None if size == "tiny" else 3)
            row(name, sides)
            if two.family == "llava" and size != "small" and not bench.options.quick:  # a minute of compiling for each
                torch.compiler.reset()
                sides["vlmkit"] = partial(two.answer, asked, new, compile=True)
                sides["transformers static+compile"] = partial(two.their_answer, asked, new, **compiled())
                row(f"{name}, compiled", sides)


def main() -> None:
    bench = Bench("generate", __doc__, lambda ask: ask.add_argument(
        "--size", action="append", help="tiny, small; on a GPU 0.5b, 7b; may be repeated"))
    gpu = bench.options.device != "cpu"
    sizes = ["0.5b", "7b"] if gpu else ["tiny"] if bench.options.quick else ["tiny", "small"]
    dtype = torch.bfloat16 if gpu else torch.float32
    for size in bench.options.size or sizes:
        for family in FAMILIES:
            cells(bench, pair(family, size, dtype, bench.options.device), size, dtype)
    bench.end()


if __name__ == "__main__":
    main()
