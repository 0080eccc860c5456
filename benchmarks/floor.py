"""What the machine can do, measured in the same run, and what a stage must do at the least: bytes and FLOPs.

    machine = measure(torch.bfloat16)
    machine.decode(model, [2379] * 4)       seconds of one step for four rows that have seen so much
    machine.prefill(model, [2379])          seconds of a prompt's way through the decoder
    machine.vision(model, 7)                seconds of seven tiles through the tower

A floor is the larger of two times: FLOPs at the measured matrix rate, bytes at the measured read rate.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from measure import wait
from torch.utils.flop_counter import FlopCounterMode

from vlmkit.view.speed import bytes_a_token


class Machine(NamedTuple):
    flops: float  # a second, of a square matrix product
    read: float  # bytes a second, of a matrix-vector product that fits no cache
    name: str

    def seconds(self, flops: float, size: float) -> float:
        return max(flops / self.flops, size / self.read)

    def decode(self, model: Any, seen: Sequence[int]) -> float:
        """One token for each row, of so many positions seen."""
        size = bytes_a_token(model.decoder, sum(seen))
        return self.seconds(decoder_flops(model.decoder, [1] * len(seen), seen), size)

    def prefill(self, model: Any, lens: Sequence[int]) -> float:
        """Prompts of these lengths through the decoder, logits of the last positions."""
        return self.seconds(decoder_flops(model.decoder, lens), bytes_a_token(model.decoder, 0))

    def vision(self, model: Any, tiles: int, tower: Any = None) -> float:
        """Tiles through the tower."""
        tower = tower or model.tower
        return self.seconds(tile_flops(tower) * tiles, sum(p.nbytes for p in tower.parameters()))


@cache
def measure(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Machine:
    """The best of some tries: a neighbour's work must not make the floor look high."""
    gpu = device != "cpu"
    side, size = (8192, 4 * 2**30) if gpu else (1536, 2**30)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    flops = 2 * side**3 / best(lambda: a @ b, device)
    wide = torch.ones(size // dtype.itemsize // 4096, 4096, dtype=dtype, device=device)
    thin = torch.ones(4096, dtype=dtype, device=device)
    seconds = [best(lambda: wide @ thin, device)]
    if not gpu:  # a plain sum sometimes reads faster than a library's product
        flat = wide.view(torch.float32).view(-1)
        seconds.append(best(lambda: flat.sum(), device))
    name = torch.cuda.get_device_name(device) if gpu else f"{torch.get_num_threads()} threads"
    return Machine(flops, wide.nbytes / min(seconds), name)


def best(work: Callable[[], Any], device: str, tries: int = 15) -> float:
    """Seconds of the fastest try."""
    work()
    found = []
    for _ in range(tries):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def decoder_flops(decoder: Any, lens: Sequence[int], past: Sequence[int] | None = None) -> int:
    """Rows of new tokens behind `past` ones; causal attention counted as what it needs, the head once a row.

    Of the last block, positions before a row's last one need no more than keys and values.
    """
    c, last = decoder.config, decoder.blocks[-1]
    block = sum(p.numel() for p in last.parameters() if p.ndim > 1)
    kept = last.attn.k.weight.numel() + last.attn.v.weight.numel()
    behind = list(zip(lens, past or [0] * len(lens), strict=True))
    pairs = (c.layers - 1) * sum(n * seen + n * (n + 1) // 2 for n, seen in behind) + sum(map(sum, behind))
    matrices = ((c.layers - 1) * block + kept) * sum(lens) + (block - kept) * len(lens)
    return int(2 * matrices + 4 * c.heads * c.head * pairs + 2 * len(lens) * c.width * c.vocab)


def tile_flops(tower: Any) -> int:
    """One tile (of a tower that sees frames together: its share), counted by running it on the meta device."""
    paper = copy.deepcopy(tower).to("meta")
    tiles = getattr(tower, "frames", 1)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        paper(torch.empty(tiles, 3, tower.side, tower.side, dtype=torch.uint8, device="meta"))
    return int(counter.get_total_flops()) // tiles


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    for kind in (torch.float32, torch.bfloat16):
        found = measure(kind, place)
        print(f"{str(kind).removeprefix('torch.')} on {found.name}: {found.flops / 1e9:.0f} GFLOP/s, "
              f"{found.read / 1e9:.1f} GB/s read")
