"""Where the time of an answer goes on this machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from ..generate.answer import generate
from ..generate.rows import position_bytes
from ..model.memory import peak, wait
from ..model.vlm import VLM
from ..types import Batch


class Speed(NamedTuple):
    """Medians, in seconds, bytes and tokens.

    stages  of the first token: pictures (files to tiles), ids (words to ids), vision (tower and projector), prefill
            (the decoder reads the prompt); and decode, all later tokens together
    first   to the first token, everything included
    rate    tokens a second after it
    floor   seconds a token that reading the weights and the cache takes at the least
    read    bytes a second that this machine reads, measured
    peak    of the process so far; on a GPU what torch took of it
    """

    stages: dict[str, float]
    first: float
    rate: float
    prompt: int
    visual: int
    new: int
    weights: int
    floor: float
    read: float
    peak: int


def measure(model: VLM, processor: Any, conversation: Sequence[Any], new: int = 32, turns: int = 3) -> Speed:
    """Answer one conversation some times, whole and in stages; `new` is at least 2.

    The time of pictures is that of the whole conversation less that of its words; prefill is what the first token
    takes beyond the stages before it.
    """
    device = next(model.parameters()).device
    batch: Batch = processor([conversation])
    words = [{**m, "content": _words(m["content"])} for m in conversation]
    given = batch.to(device)

    @torch.inference_mode()
    def see() -> None:
        model.encode(given.visuals)

    def answer(count: int) -> Any:
        return generate(model, processor, [conversation], max_new_tokens=count, ignore_eos=True, details=True)[0]

    said = len(answer(new).ids)  # also the warm-up; fewer where the context ends
    work: dict[str, Callable[[], Any]] = {
        "read": partial(processor, [conversation]), "ids": partial(processor, [words]), "vision": see,
        "first": partial(answer, 1), "whole": partial(answer, said)}  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, side in work.items():
            taken[name].append(_seconds(side))
    found = {name: median(column) for name, column in taken.items()}
    tiles = max(0.0, found["read"] - found["ids"]) if batch.visuals else 0.0
    vision = found["vision"] if batch.visuals else 0.0
    decode = max(found["whole"] - found["first"], 1e-9)
    prefill = max(0.0, found["first"] - tiles - found["ids"] - vision)
    stages = {"pictures": tiles, "ids": found["ids"], "vision": vision, "prefill": prefill, "decode": decode}
    read, size = bandwidth(device), bytes_a_token(model.decoder, len(batch.ids))
    return Speed(stages, found["first"], (said - 1) / decode, len(batch.ids), len(batch.slots), said,
                 sum(p.nbytes for p in model.parameters()), size / read, read, peak(device))


def bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes a second that a matrix-vector product reads, the best of some; more than most caches hold."""
    wide = torch.ones(size // 4 // 4096, 4096, device=device)
    thin = torch.ones(4096, device=device)
    wide @ thin
    return wide.nbytes / min(_seconds(lambda: wide @ thin) for _ in range(7))


def bytes_a_token(decoder: Any, seen: int) -> int:
    """What one more token reads: the decoder's weights, of the embedding only a row, and keys and values so far."""
    embed = sum(p.nbytes for p in decoder.embed.parameters())
    weights = sum(p.nbytes for p in decoder.parameters()) - (embed if hasattr(decoder, "head") else 0)
    return int(weights + seen * position_bytes(decoder))


def _words(content: Any) -> Any:
    """A message without its pictures and clips."""
    return content if isinstance(content, str) else [part for part in content if part["type"] == "text"]


def _seconds(side: Callable[[], Any]) -> float:
    gc.collect()
    wait()
    begun = time.perf_counter()
    side()
    wait()
    return time.perf_counter() - begun
