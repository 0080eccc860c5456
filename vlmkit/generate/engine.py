"""Many requests in one row: pieces of new prompts beside the last token of those that speak."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from threading import Condition
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextLengthError, PromptError
from ..model.features import FeatureCache, key
from ..types import Batch
from .forward import Piece, encode, forward
from .needs import Model, Processor
from .request import Finish, Options, Request
from .rows import Rows, state
from .sample import draw
from .steps import Steps
from .text import Writer


class Engine:
    """Holds requests and one cache. One thread steps; any thread may submit, cancel and read.

    rows      how many requests run side by side; more wait
    prefill   prompt tokens in one step; longer prompts are read in several, while others speak
    memory    bytes the cache may have; requests that do not fit beside the others wait
    reuse     finished requests leave their row to others that begin alike
    features  a FeatureCache of pictures and clips; None: each request runs the tower
    compile   steps that read no prompt are compiled (on a GPU captured as a graph): a wait at first, then faster
    """

    def __init__(self, model: Model, processor: Processor, *, rows: int = 8, prefill: int = 4096, memory: float = inf,
                 reuse: bool = True, features: FeatureCache | None = None, compile: bool = False) -> None:
        self.model, self.processor = model, processor
        self.prefill, self.reuse, self.features = prefill, reuse, features
        self.rows, self.steps = Rows(model.decoder, rows, memory), Steps(model.decoder) if compile else None
        self.running: list[Request] = []  # in the order they came
        self.waiting: deque[Request] = deque()
        self._changed = Condition()  # guards `waiting`
        self._learning = [module for module in model.modules() if module.training]
        self._steady = getattr(model.decoder, "steady", True)

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self.running or self.waiting)

    @property
    def open(self) -> bool:
        """Whether one more request would join the next step."""
        unread = sum(len(r.tokens) - r.done for r in (*self.running, *self.waiting) if not r.ids)
        return len(self.running) + len(self.waiting) < self.rows.most and unread < self.prefill

    def submit(self, conversation: Any, options: Options = Options()) -> Request:
        """Prepare a conversation, or take a batch of one, and let it wait for a place. Errors are the caller's."""
        until = inf if options.check().deadline is None else time.monotonic() + (options.deadline or 0)
        prompt = conversation if isinstance(conversation, Batch) else self.processor([conversation])
        request = self._request(prompt, options, until)
        with self._changed:
            self.waiting.append(request)
            self._changed.notify_all()
        return request

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until there is something to do, or for so long; whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.busy, seconds)

    def pieces(self, request: Request) -> Iterator[str]:
        """The answer as it comes, for the thread that steps; raises what went wrong. Whoever leaves early cancels."""
        try:
            while request.finish is None:
                for told in self.step():
                    if told is request and told.piece:
                        yield told.piece
        finally:
            if request.finish is None:
                request.cancel()
        if request.error:
            raise request.error

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token for everybody whose prompt is read. Returns those with news; the finished ones have left.

        An error ends the request that caused it. Where that is not known, as when memory runs out, it ends the newest
        of the step, and the others try again.
        """
        news = self._leave()
        try:
            self._admit()
            pieces = self._plan()
        except Exception as error:
            return [*news, self._restart(error)]
        with self._still():
            if reading := [p.request for p in pieces if p.request.done < p.request.start]:
                news += self._see(reading)
                pieces = [piece for piece in pieces if not piece.request.finish]
            if not pieces:
                return news
            speaking = [piece.request for piece in pieces if piece.last]
            try:
                logits = forward(self.model, self.rows, pieces, self.steps)[:, : self.processor.tokenizer.size]
            except BaseException as error:
                self.rows.rewind(self.running)
                if not isinstance(error, Exception):
                    raise
                newest = max((piece.request for piece in pieces), key=self.running.index)
                self._end(newest, "error", error)
                return [*news, newest]
        if speaking:
            self._choose(speaking, logits)
        return news + speaking

    def _leave(self) -> list[Request]:
        """End what was cancelled or has no time left."""
        now = time.monotonic()
        gone = [r for r in self.running if r.cancelled or r.until <= now]
        if self.waiting:
            with self._changed:
                late = [r for r in self.waiting if r.cancelled or r.until <= now]
                for request in late:
                    self.waiting.remove(request)
            gone += late
        for request in gone:
            self._end(request, "cancelled" if request.cancelled else "deadline")
        return gone

    def _admit(self) -> None:
        """Give rows to those that wait, in their order, while the next one fits."""
        weights = None
        while self.waiting and self.rows.fits(self.waiting[0].reach):
            weights = weights or (state(self.model) if self.reuse and self._steady else None)
            with self._changed:
                request = self.waiting.popleft()
            self.running.append(request)
            self.rows.take(request, weights)

    def _plan(self) -> list[Piece]:
        """What each request brings, in the order of the cache's rows; prompts share what one step may read."""
        pieces, room = [], self.prefill
        for request in self.running:
            length = len(request.tokens) - request.done
            if length > 1:
                length = min(length, room) if self._steady or room <= 0 else length
                room -= length
            if length > 0:
                pieces.append(Piece(request, length))
        if pieces:
            self.rows.reserve(max(piece.request.done + piece.length for piece in pieces))
        pieces.sort(key=lambda piece: piece.request.row)
        return pieces

    def _restart(self, error: Exception) -> Request:
        """The cache could not grow: the newest goes, the others read anew what they know. Returns the newest."""
        *others, newest = self.running
        self.running, self.rows = [], Rows(self.model.decoder, self.rows.most, self.rows.memory)
        for request in (newest, *others):
            request.row, request.done, request.seen = -1, 0, None
        with self._changed:
            self.waiting.extendleft(reversed(others))
        newest.end("error", error=error)
        return newest

    def _see(self, reading: Sequence[Request]) -> list[Request]:
        """Encode what new requests show, in one call; where that fails, one by one. Returns those that failed."""
        fresh = [r for r in reading if r.seen is None and len(r.prompt.slots) and r.prompt.slots[-1] >= r.done]
        try:
            encode(self.model, self.rows, fresh, self.features)
            return []
        except Exception:
            failed = []
            for request in fresh:
                try:
                    encode(self.model, self.rows, [request], self.features)
                except Exception as error:
                    self._end(request, "error", error)
                    failed.append(request)
            return failed

    def _choose(self, speaking: Sequence[Request], logits: Tensor) -> None:
        """The next token of each, and what follows; an error in one is that one's.   logits [speaking, vocab]"""
        best = logits.argmax(-1).tolist()
        wanted = any(request.options.logprobs for request in speaking)
        scale = logits.logsumexp(-1).tolist() if wanted else []
        for at, request in enumerate(speaking):
            try:
                token, how = best[at], request.options.sampling
                if request.drawn:
                    token = draw(logits[at], how, request.tokens, request.generator)
                if request.options.logprobs:
                    request.logprobs.append(float(logits[at, token]) - scale[at])
                request.take(token)
            except Exception as error:
                request.end("error", error=error)
            if request.finish:
                self._drop(request)

    def _end(self, request: Request, why: Finish, error: Exception | None = None) -> None:
        request.end(why, error=error)
        if request.row >= 0:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        self.running.remove(request)
        self.rows.leave(request)

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

    def _request(self, prompt: Batch, options: Options, until: float) -> Request:
        """A request that can be answered, or an error that says why not."""
        if len(prompt.lens) != 1 or not len(prompt.ids):
            raise PromptError(f"expected one prompt with words in it, got lens {prompt.lens.tolist()}")
        least, most = (int(end) for end in prompt.ids.aminmax())
        if least < 0 or most >= self.model.decoder.vocab:  # on a GPU that would be the end of the process
            raise PromptError(f"ids from {least} to {most}; the decoder knows 0 to {self.model.decoder.vocab - 1}")
        stops = options.stop if options.ignore_eos else (*self.processor.stop_strings, *options.stop)
        keys = prompt.ids.index_fill(0, prompt.slots, -1)
        return Request(
            prompt, options, len(prompt.ids), self._reach(prompt, options),
            frozenset(() if options.ignore_eos else self.processor.stop_ids),
            Writer(self.processor.tokenizer.decode, stops), until, prompt.ids.tolist(), options.sampling.generator(),
            keys, [key(visual) for visual in prompt.visuals] if self.reuse else [],
        )  # fmt: skip

    def _reach(self, prompt: Batch, options: Options) -> int:
        """Where the answer must end: with what was asked for, or where the decoder or the memory ends."""
        length, context = len(prompt.ids), int(self.model.decoder.context)
        reach, what = context, f"the decoder reads {context}"
        if self.rows.reach < context:
            reach, what = int(self.rows.reach), f"{self.rows.memory:.0f} bytes of cache hold {self.rows.reach:.0f}"
        if length >= reach:
            raise ContextLengthError(
                f"the prompt has {length} tokens, {len(prompt.slots)} of them visual; "
                f"{what} and one must be left for the answer",
                hint="fewer pictures or frames, smaller pictures, or a shorter text", limit=reach, got=length,
            )  # fmt: skip
        return min(length + options.max_new_tokens, reach)
