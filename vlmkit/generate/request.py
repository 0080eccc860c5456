"""One conversation on its way to an answer: what it asks for, what was said, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from ..errors import PromptError, VlmkitError
from ..types import Batch, Generation
from .sample import Sampling, number
from .text import Writer

Finish = Literal["stop", "length", "cancelled", "deadline", "error"]


class Wishes(TypedDict, total=False):
    """How to answer; `generate` and `stream` take these by name, and defaults are those of Options and Sampling."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: str | Sequence[str] | None
    ignore_eos: bool
    seed: int | None
    deadline: float | None


class Options(NamedTuple):
    """What a request asks for."""

    max_new_tokens: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    deadline: float | None = None  # seconds from now on; what was said until then is the answer
    logprobs: bool = False  # the model's own, one for each token

    @classmethod
    def of(cls, wishes: Wishes, **more: Any) -> Options:
        """The same in the engine's terms, checked."""
        stop = wishes.get("stop")
        if not isinstance(stop, str | list | tuple | None):
            raise PromptError("expected a text or a list of them", where="stop")
        given: dict[str, Any] = {**wishes, **more, "stop": (stop,) if isinstance(stop, str) else tuple(stop or ())}
        sampling = Sampling(**{name: given.pop(name) for name in Sampling._fields if name in given})
        return cls(sampling=sampling, **given).check()

    def check(self) -> Options:
        """The same, or an error that names the field."""
        self.sampling.check()
        number(self.max_new_tokens, "max_new_tokens", lambda x: x >= 1, "a whole number of at least 1", whole=True)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise PromptError("expected texts; an empty one would stop everything", where="stop")
        if self.deadline is not None:
            number(self.deadline, "deadline", lambda x: 0 <= x < inf, "seconds, at least 0")
        return self


@dataclass(eq=False)
class Request:
    """Made by `Engine.submit`. Any thread may read it, iterate over its pieces and cancel it."""

    prompt: Batch
    options: Options
    start: int  # where the answer starts: tokens of the prompt
    reach: int  # where it must end: as long may the request's row of the cache become
    stop_ids: frozenset[int]
    writer: Writer
    until: float  # on the clock of time.monotonic
    tokens: list[int]  # the prompt's, then the answer's
    generator: torch.Generator | None  # None: it takes the best token
    keys: Tensor  # the prompt's ids, -1 at its slots   [prompt]
    digests: list[bytes]  # of its visuals, when it may start from another request's row
    logprobs: list[float] = field(default_factory=list)
    piece: str = ""  # the text that the last step made certain
    finish: Finish | None = None
    error: Exception | None = None
    cancelled: bool = False
    row: int = -1  # of the cache
    done: int = 0  # tokens that are in the cache
    reused: int = 0  # of them, those that another request had left there
    seen: Tensor | None = None  # visual tokens of the prompt that are not in the cache yet   [any, width]
    _pieces: SimpleQueue[str | None] = field(default_factory=SimpleQueue)

    @property
    def ids(self) -> list[int]:
        """The answer's tokens."""
        return self.tokens[self.start :]

    @property
    def drawn(self) -> bool:
        """Whether the next token is more than the best one."""
        return self.generator is not None or self.options.sampling.repetition_penalty != 1

    def cancel(self) -> None:
        """Leave at the next step, with what was said so far."""
        self.cancelled = True

    def __iter__(self) -> Iterator[str]:
        """The answer's pieces as they come, for another thread than the one that steps; raises what went wrong."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        if self.error:
            raise self.error

    def take(self, token: int) -> None:
        """One more token, and what follows from it."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return self.end("stop")
        self.piece = self.writer.add(token)
        if self.writer.stopped:
            self.end("stop", self.piece)
        elif len(self.tokens) == self.reach:
            self.end("length", self.piece)
        elif self.piece:
            self._pieces.put(self.piece)

    def end(self, why: Finish, piece: str = "", error: Exception | None = None) -> None:
        """Nothing follows. What was held back, as it might have begun a stop string, is said now."""
        self.piece = piece if why == "error" else piece + self.writer.finish()
        self.error, self.seen = error, None
        if self.piece:
            self._pieces.put(self.piece)
        self._pieces.put(None)
        self.finish = why

    def generation(self) -> Generation:
        """The finished answer; raises what went wrong."""
        if self.finish is None or self.finish == "error":
            raise self.error or VlmkitError("the answer is not finished", hint="step the engine on")
        visual = len(self.prompt.slots)
        return Generation(self.writer.text, self.ids, self.logprobs, self.start, visual, self.finish)
