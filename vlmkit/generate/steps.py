"""Decode steps whose shapes stay: compiled where a CPU computes, a captured graph where a GPU does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import KVCache

BUCKET = 256  # keys; a step looks at the fewest buckets that hold all


class Steps:
    """Those of one decoder. What was captured belongs to one cache; another one is captured anew."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.step: Any = None
        self.graphs: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}

    def __call__(self, tokens: Sequence[int], rows: Sequence[int], cache: list[KVCache]) -> Tensor | None:
        """One new token for each of some rows of the cache; None where it has no such step.   [tokens, vocab]"""
        step = self.decoder.fixed() if hasattr(self.decoder, "fixed") else None
        if step is None:
            return None
        if step is not self.step:
            self.step, self.graphs = step, {}
        first, lens = cache[0].k, cache[0].lens
        ids, live = [0] * len(first), [0] * len(first)
        for token, row in zip(tokens, rows, strict=True):
            ids[row], live[row] = token, 1
        at = lens.clamp(max=first.shape[1] - 1).tolist()  # a resting row may be full; nothing is written there
        keys = min(first.shape[1], -(-(max(at) + 1) // BUCKET) * BUCKET)
        numbers = torch.tensor([ids, at, live], device=first.device)
        logits = self._run(numbers, keys, cache)
        lens.add_(torch.tensor(live))
        return logits if len(rows) == len(first) else logits[torch.tensor(rows, device=first.device)]

    def _run(self, numbers: Tensor, keys: int, cache: list[KVCache]) -> Tensor:
        k, v = [layer.k[:, :keys] for layer in cache], [layer.v[:, :keys] for layer in cache]
        if not numbers.is_cuda:
            for tensor in (*k, *v):
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
            return self.step.compiled(numbers, k, v)  # type: ignore[no-any-return]
        where = tuple(tensor.data_ptr() for tensor in (*k, *v))
        key = *where, *k[0].shape, *k[0].stride()  # all that a graph has of a cache
        if key not in self.graphs:
            self.graphs = {old: graph for old, graph in self.graphs.items() if old[: len(where)] == where}
            self.graphs[key] = capture(lambda new: self.step(new, k, v), numbers)
        return self.graphs[key](numbers)


def capture(work: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[Tensor], Tensor]:
    """The same as one graph of a GPU: its kernels without what launching them costs. The result is overwritten."""
    given, side = given.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels and memory before
        work(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work(given)

    def again(new: Tensor) -> Tensor:
        given.copy_(new)
        graph.replay()
        return found
    return again
