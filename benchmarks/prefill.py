"""A prompt's way through the decoder, into an empty cache: 512 to 8,192 tokens, logits of the last position.

    python benchmarks/prefill.py [--size small] [--dtype bfloat16] [--device cuda]

Of positions that nobody reads, vlmkit's last block computes keys and values only; transformers computes all of them.
The cache that both sides fill is as large as it must be, and counts as memory on both. Logits are checked before the
timing: in float32 to 1e-5 of their largest, in bfloat16 to a tenth of their spread. transformers is asked for the last
position's logits only, which its generate does as well.
"""

from __future__ import annotations

from functools import partial

import floor
import torch
import transformers
from measure import Bench
from models import Pair, pair, sweep
from torch import Tensor


@torch.inference_mode()
def ours(two: Pair, ids: Tensor) -> Tensor:
    """[tokens] -> [1, vocab]"""
    decoder = two.model.decoder
    hidden = decoder(decoder.embed(ids), torch.tensor([len(ids)]), decoder.cache(1, len(ids)), ends=True)
    logits: Tensor = two.model.logits(hidden)
    return logits


@torch.inference_mode()
def theirs(two: Pair, ids: Tensor) -> Tensor:
    """[tokens] -> [1, vocab]"""
    cache = transformers.DynamicCache(config=two.theirs.config.get_text_config())
    made = two.theirs(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = made.logits[0].float()
    return logits


def same(exact: bool, mine: Tensor, yours: Tensor) -> None:
    most = 1e-5 * float(yours.abs().max().clamp(min=1)) if exact else 0.1 * float(yours.std())
    torch.testing.assert_close(mine, yours, rtol=0, atol=most)


def cells(bench: Bench, size: str, dtype: torch.dtype) -> None:
    two = pair("llava", size, dtype, bench.options.device)
    machine = floor.measure(dtype, bench.options.device)
    short = bench.options.quick or (size == "small" and dtype == torch.float32)
    for tokens in (512, 2400) if short else (512, 2400, 8192):
        ids = torch.randint(10, two.shape.vocab, (tokens,), generator=torch.Generator().manual_seed(1))
        ids = ids.to(two.theirs.device)
        bench.row(f"{size} {str(dtype).removeprefix('torch.')}, {tokens} tokens",
                  {"vlmkit": partial(ours, two, ids), "transformers": partial(theirs, two, ids)},
                  same=partial(same, dtype == torch.float32), memory=True,
                  floor=machine.prefill(two.model, [tokens]))


if __name__ == "__main__":
    sweep("prefill", __doc__, cells)
