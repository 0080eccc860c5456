"""Many requests in one row: prompts of new ones beside the last token of old ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ContextLengthError, PromptError, VlmkitError
from ..types import Batch, Generation, KVCache, Visual
from .sample import Sampling, choose, number
from .text import Writer

ROOM = 256  # positions a cache grows by at least, so that it is seldom copied


class Tokens(Protocol):
    """The tokenizer of a processor."""

    size: int  # ids it knows; rows of the vocabulary behind them are spare

    def decode(self, ids: list[int]) -> str: ...


class Processor(Protocol):
    """What generation needs of a processor."""

    tokenizer: Tokens
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]

    def __call__(self, conversations: Any) -> Batch: ...


class Model(Protocol):
    """What generation needs of a model."""

    decoder: Any

    def __call__(self, batch: Batch, cache: list[KVCache] | None = None) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def modules(self) -> Iterable[Any]: ...


class Options(NamedTuple):
    """What a request asks for."""

    max_new_tokens: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def check(self) -> Options:
        """The same, or an error that names the field."""
        self.sampling.check()
        number(self.max_new_tokens, "max_new_tokens", lambda x: x >= 1, "a whole number of at least 1", whole=True)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise PromptError("expected texts; an empty one would stop everything", where="stop")
        return self


@dataclass
class Request:
    """One conversation on its way to an answer."""

    prompt: Batch
    limit: int  # tokens it may still get at the start
    sampling: Sampling
    stop_ids: frozenset[int]
    writer: Writer
    row: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    piece: str = ""  # the text that the last step made certain
    finish: Literal["stop", "length"] | None = None

    @property
    def fresh(self) -> Tensor:
        """The ids that the model has not seen: the prompt, later the last token."""
        return torch.tensor(self.ids[-1:]) if self.ids else self.prompt.ids

    @property
    def seen(self) -> Tensor:
        """Everything said so far."""
        return torch.cat((self.prompt.ids, torch.tensor(self.ids, dtype=torch.int64)))

    def take(self, token: int, logprob: float) -> None:
        """One more token, and what follows from it."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_ids:
            self.piece, self.finish = self.writer.finish(), "stop"
            return
        self.piece = self.writer.add(token)
        if not self.writer.stopped and len(self.ids) == self.limit:
            self.piece += self.writer.finish()
            self.finish = "length"
        if self.writer.stopped:
            self.finish = "stop"

    def generation(self) -> Generation:
        """The finished answer."""
        prompt, visual = len(self.prompt.ids), len(self.prompt.slots)
        return Generation(self.writer.text, self.ids, self.logprobs, prompt, visual, self.finish or "length")


class Engine:
    """Holds requests and one cache.

    rows     how many requests run side by side
    prefill  prompt tokens beyond which no further prompt joins the same step
    """

    def __init__(self, model: Model, processor: Processor, *, rows: int = 8, prefill: int = 8192) -> None:
        self.model, self.processor = model, processor
        self.rows, self.prefill = rows, prefill
        self.running: dict[int, Request] = {}  # by cache row
        self.cache: list[KVCache] = model.decoder.cache(rows, 0)
        self._learning = [module for module in model.modules() if module.training]

    @property
    def open(self) -> bool:
        """Whether one more request may join the next step."""
        waiting = sum(len(r.prompt.ids) for r in self.running.values() if not r.ids)
        return len(self.running) < self.rows and waiting < self.prefill

    def admit(self, prompt: Batch, options: Options) -> Request:
        """Give a prompt, a batch of one sequence, a row of the cache; one must be free."""
        options.check()
        row = next((row for row in range(self.rows) if row not in self.running), None)
        if row is None:
            raise VlmkitError(f"all {self.rows} rows are taken", hint="admit while `open` is true")
        if len(prompt.lens) != 1 or not len(prompt.ids):
            raise PromptError(f"expected one prompt with words in it, got lens {prompt.lens.tolist()}")
        stop_ids = () if options.ignore_eos else self.processor.stop_ids
        stops = options.stop if options.ignore_eos else (*self.processor.stop_strings, *options.stop)
        self.running[row] = request = Request(
            prompt, self._limit(prompt, options), options.sampling, frozenset(stop_ids),
            Writer(self.processor.tokenizer.decode, stops), row, options.sampling.generator(),
        )  # fmt: skip
        return request

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token for everybody. Returns those who got it; the finished ones have left."""
        requests = [self.running[row] for row in sorted(self.running)]
        if not requests:
            return []
        batch = join(requests, self.rows)
        self._reserve(requests, batch.lens)
        ends = batch.lens[batch.lens > 0].cumsum(0) - 1  # nobody reads the other positions' logits
        with self._still():
            hidden = self.model(batch.to(self._device), cache=self.cache)
            logits = self.model.logits(hidden[ends.to(self._device)])[:, : self.processor.tokenizer.size]
        sampling = [r.sampling for r in requests]
        seen = [r.seen if r.sampling.repetition_penalty != 1 else r.prompt.ids for r in requests]
        picked = choose(logits, sampling, seen, [r.generator for r in requests])
        for request, token, logprob in zip(requests, *picked, strict=True):
            request.take(token, logprob)
            if request.finish:
                self.finish(request)
        return requests

    @torch.inference_mode()
    def finish(self, request: Request) -> None:
        """Free the request's row, and wipe it: leftovers are masked, but a mask does not stop a NaN."""
        del self.running[request.row]
        used = int(self.cache[0].lens[request.row])
        for layer in self.cache:
            layer.k[request.row, :used] = 0
            layer.v[request.row, :used] = 0
        self.cache[0].lens[request.row] = 0

    @contextmanager
    def _still(self) -> Iterator[None]:
        """A model that is being trained answers as it will: batch statistics and dropout mix neighbours in."""
        for module in self._learning:
            module.training = False
        try:
            yield
        finally:
            for module in self._learning:
                module.training = True

    @property
    def _device(self) -> torch.device:
        return self.cache[0].k.device

    def _limit(self, prompt: Batch, options: Options) -> int:
        """How many tokens the answer may have: what was asked for, as far as the decoder reaches."""
        length, context = len(prompt.ids), int(self.model.decoder.context)
        if length >= context:
            raise ContextLengthError(
                f"the prompt has {length} tokens, {len(prompt.slots)} of them visual; "
                f"the decoder reads {context} and one must be left for the answer",
                hint="fewer pictures or frames, smaller pictures, or a shorter text",
                limit=context, got=length,
            )  # fmt: skip
        return min(options.max_new_tokens, context - length)

    def _reserve(self, requests: Sequence[Request], lens: Tensor) -> None:
        """Make the cache long enough for this step, and a while longer."""
        needed = self.cache[0].lens + lens
        if int(needed.max()) <= self.cache[0].k.shape[1]:
            return
        capacity = max(int(needed[r.row]) + min(r.limit - len(r.ids), ROOM) for r in requests)
        old, self.cache = self.cache, self.model.decoder.cache(self.rows, capacity)
        filled = int(old[0].lens.max())
        for before, after in zip(old, self.cache, strict=True):
            after.k[:, :filled], after.v[:, :filled] = before.k[:, :filled], before.v[:, :filled]
        self.cache[0].lens.copy_(old[0].lens)


def join(requests: Sequence[Request], rows: int) -> Batch:
    """What the model has not seen of each request, laid end to end in the order of the cache's rows."""
    lens = torch.zeros(rows, dtype=torch.int64)
    ids: list[Tensor] = []
    slots: list[Tensor] = []
    visuals: list[Visual] = []
    start, none = 0, torch.empty(0, dtype=torch.int64)
    for request in requests:
        fresh = request.fresh
        if not request.ids:
            slots.append(request.prompt.slots + start)
            visuals += request.prompt.visuals
        ids.append(fresh)
        lens[request.row] = len(fresh)
        start += len(fresh)
    return Batch(torch.cat(ids), lens, torch.cat(slots) if slots else none, visuals)
