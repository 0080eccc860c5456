"""One new token for each row, at the models themselves: behind 64 and 2,400 positions, for 1, 4 and 16 rows.

    python benchmarks/decode.py [--size tiny] [--dtype bfloat16] [--device cuda]

Each call takes 16 greedy steps from a cache that is filled once. In float32 the ids of all steps must be equal and the
last logits within 1e-5 of their largest; bfloat16 rounds on both sides differently where the order of sums differs, so
there only the first step's logits are compared. vlmkit runs as it is, and with its compiled step of fixed shapes;
transformers with its default cache, with a static one, and with a static one in a compiled forward. What is compiled
is compiled before the timing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import floor
import torch
import transformers
from measure import Bench, Side
from models import Pair, pair, sweep
from torch import Tensor

from vlmkit.generate.steps import Steps
from vlmkit.types import Batch, KVCache

STEPS = 16
Found = tuple[Tensor, Tensor, Tensor]  # ids [rows, steps], logits of the first and of the last step [rows, vocab]


def run(ids: Tensor, forward: Callable[[Tensor], Tensor]) -> Found:
    """[rows] -> greedy steps from there"""
    seen, logits = [], []
    for _ in range(STEPS):
        logits.append(forward(ids).float())
        seen.append(ids := logits[-1].argmax(-1))
    return torch.stack(seen, 1), logits[0], logits[-1]


def prompts(two: Pair, rows: int, context: int) -> Tensor:
    """[rows, context]"""
    drawn = torch.randint(10, two.shape.vocab, (rows, context), generator=torch.Generator().manual_seed(1))
    return drawn.to(two.theirs.device)


@torch.inference_mode()
def ours(two: Pair, rows: int, context: int, compiled: bool = False) -> Side:
    ids, none = prompts(two, rows, context), torch.empty(0, dtype=torch.int64, device=two.theirs.device)
    cache: list[KVCache] = two.model.decoder.cache(rows, context + STEPS)
    two.model(Batch(ids.flatten(), torch.full((rows,), context), none, []), cache)
    one, steps, everybody = torch.ones(rows, dtype=torch.int64), Steps(two.model.decoder), list(range(rows))

    def usual(new: Tensor) -> Tensor:
        logits: Tensor = two.model.logits(two.model(Batch(new, one, none, []), cache))
        return logits

    def fixed(new: Tensor) -> Tensor:
        found = steps(new.tolist(), everybody, cache)
        assert found is not None
        return found

    @torch.inference_mode()
    def side() -> Found:
        cache[0].lens.fill_(context)
        return run(ids[:, -1], fixed if compiled else usual)
    return side


@torch.inference_mode()
def theirs(two: Pair, rows: int, context: int, static: bool = False, compiled: bool = False) -> Side:
    ids, model = prompts(two, rows, context), two.theirs
    config = model.config.get_text_config()
    cache: Any = (transformers.StaticCache(config=config, max_cache_len=context + STEPS) if static
                  else transformers.DynamicCache(config=config))
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    forward = torch.compile(model.forward, mode="default") if compiled else model

    @torch.inference_mode()
    def side() -> Found:
        if static:
            for layer in cache.layers:
                layer.cumulative_length.fill_(context)
        elif extra := cache.get_seq_length() - context:
            cache.crop(-extra)
        return run(ids[:, -1], lambda new: forward(
            input_ids=new[:, None], past_key_values=cache, use_cache=True).logits[:, -1])
    return side


def same(exact: bool, mine: Found, yours: Found) -> None:
    """Ids of all steps and the last logits, or the first logits to a tenth of their spread."""
    if exact:
        assert torch.equal(mine[0], yours[0]), "other ids"
        torch.testing.assert_close(mine[2], yours[2], rtol=0, atol=1e-5 * float(yours[2].abs().max().clamp(min=1)))
    else:
        torch.testing.assert_close(mine[1], yours[1], rtol=0, atol=0.1 * float(yours[1].std()))


def cells(bench: Bench, size: str, dtype: torch.dtype) -> None:
    two = pair("llava", size, dtype, bench.options.device)
    machine = floor.measure(dtype, bench.options.device)
    quick, kind = bench.options.quick, str(dtype).removeprefix("torch.")
    for context in (64, 2400):
        for rows in (1, 4) if quick or size == "small" else (1, 4, 16):
            least = machine.decode(two.model, [context] * rows)
            row = partial(bench.row, each=STEPS, floor=least, same=partial(same, dtype == torch.float32),
                          turns=None if size == "tiny" else 3)
            case, plain, static = f"{size} {kind}, {rows} behind {context}", *(
                theirs(two, rows, context, static=kept) for kept in (False, True))
            row(case, {"vlmkit": ours(two, rows, context), "transformers": plain, "transformers static": static})
            if rows > (1 if size == "small" else 4):
                continue
            torch.compiler.reset()
            sides: dict[str, Side] = {"vlmkit": ours(two, rows, context, compiled=True), "transformers": plain}
            if not quick:
                sides["transformers static+compile"] = theirs(two, rows, context, static=True, compiled=True)
            row(f"{case}, compiled", sides)


if __name__ == "__main__":
    sweep("decode", __doc__, cells)
