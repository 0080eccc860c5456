"""Whose step a conversation is part of: measured before any pixel is read, shared out evenly, laid end to end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from ..errors import ContextLengthError, DataError, MediaError, PromptError, TemplateError, TokenizerError, VlmkitError
from ..processing.batch import lay
from ..processing.processor import Measured
from ..types import IGNORED, Batch, Sample

if TYPE_CHECKING:
    from ..processing.processor import Processor

BAD = (DataError, MediaError, PromptError, TemplateError, TokenizerError)  # of the conversation; others stop a run
BLANK = Sample(torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [], torch.tensor([IGNORED]))


class LeftOut(NamedTuple):
    """A conversation that is not learned from: its number, where it stands (file:line), and why."""

    number: int
    where: str
    reason: str
    what: str


class Group(NamedTuple):
    """What a step is made of: the conversations of each rank, or of all in one list as long as they are not shared out.

    end  the place in the endless order of conversations where the next step begins
    """

    shares: list[list[int]]
    end: int
    bad: list[LeftOut]


class Made(NamedTuple):
    """What a rank gets of a step.

    batch  None when nothing is left of it on any rank
    bad    what all ranks know to be bad
    mine   what only this one found, when it looked at the pixels
    held   the conversations of its batch
    """

    batch: Batch | None
    end: int
    bad: list[LeftOut]
    mine: list[LeftOut]
    held: list[int]


class Making(Dataset[Made | VlmkitError]):
    """Group -> what this rank gets of it.   pairs: of each conversation the chosen and the rejected answer"""

    def __init__(self, data: Any, processor: Processor, tokens: int | None, rank: int, world: int, pairs: bool = False
                 ) -> None:
        self.data, self.processor, self.tokens, self.rank, self.world = data, processor, tokens, rank, world
        self.pairs = pairs

    def __getitem__(self, group: Group) -> Made | VlmkitError:
        try:
            return self._make(group)
        except VlmkitError as error:  # a result like others: raised in another process it would lose its fields
            return error

    def _make(self, group: Group) -> Made:
        shares, bad = group.shares, group.bad
        if len(shares) != self.world:
            shares, bad = self._share(shares[0])
        found = {index: self.samples(index) for index in shares[self.rank]}
        good = [index for index in shares[self.rank] if not isinstance(found[index], LeftOut)]
        samples = [one for index in good for one in found[index] if isinstance(one, Sample)]
        mine = [one for one in found.values() if isinstance(one, LeftOut)]
        if not samples and (self.world == 1 or not any(shares)):
            return Made(None, group.end, bad, mine, good)
        return Made(lay(samples or [BLANK]), group.end, bad, mine, good)

    def _share(self, indices: list[int]) -> tuple[list[list[int]], list[LeftOut]]:
        """Conversations for each rank, the largest first to who has the least; each rank comes to the same end."""
        sizes = {index: self.size(index) for index in indices}
        loads = [Load() for _ in range(self.world)]
        good = [(size, at) for at, index in enumerate(indices) if not isinstance(size := sizes[index], LeftOut)]
        for size, at in sorted(good, key=lambda one: (-one[0].visual, -one[0].tokens)):
            load = place(loads, size, sys.maxsize)
            assert load is not None
            load.add(at, size)
        shares = [[indices[at] for at in sorted(load.indices)] for load in loads]
        return shares, [size for size in sizes.values() if isinstance(size, LeftOut)]

    def samples(self, index: int) -> list[Sample] | LeftOut:
        """A conversation as numbers, a pair as two that see the same pixels, or what is wrong with it."""
        try:
            samples: list[Sample] = []
            for messages in self._read(index):
                visuals = samples[0].visuals if samples else None
                samples.append(self.processor.sample(messages, reply=False, labels=True, visuals=visuals))
            if any(one.labels is None or not (one.labels[1:] != IGNORED).any() for one in samples):
                raise DataError("nothing of it is learned")
            return samples
        except BAD as error:
            return self._left_out(index, error)

    def size(self, index: int) -> Measured | LeftOut:
        """How long a conversation is, or what is wrong with it; no pixel is looked at."""
        try:
            each = [self.processor.measure(messages) for messages in self._read(index)]
            size = Measured(sum(one.tokens for one in each), sum(one.visual for one in each))
            if self.tokens and size.tokens > self.tokens:
                what = f"{size.tokens} tokens" + " in both answers of a pair" * self.pairs
                raise ContextLengthError(what, limit=self.tokens, got=size.tokens, setting="tokens")
            return size
        except BAD as error:
            return self._left_out(index, error)

    def _read(self, index: int) -> list[Any]:
        """The messages of a conversation; of a pair, with the chosen answer and with the rejected one."""
        messages = self._messages(index)
        if not self.pairs:
            return [messages]
        last = messages[-1]
        if not isinstance(last, Mapping) or last.get("role") != "assistant" or "rejected" not in last:
            raise DataError("no pair: the last answer has no `rejected` beside it")
        if not _words(last["rejected"]):
            raise DataError("an empty rejected answer")
        return [messages, [*messages[:-1], {"role": "assistant", "content": last["rejected"]}]]

    def _messages(self, index: int) -> Any:
        messages = self.data[index]
        answers = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "assistant"]
        if not answers:
            raise DataError("no answer to learn from")
        if not all(map(_words, answers)):
            raise DataError("an empty answer")
        return messages

    def _left_out(self, index: int, error: VlmkitError) -> LeftOut:
        named = getattr(self.data, "place", None)
        where = named(index) if named else f"conversation {index}"
        what = str(error).partition("\n")[0].removeprefix(f"{where}: ")
        return LeftOut(index, where, type(error).__name__, what[:300])


class Sizes(Dataset[Any]):
    """Conversation -> its number, and how long it is or what is wrong with it."""

    def __init__(self, making: Making) -> None:
        self.making = making

    def __getitem__(self, index: int) -> tuple[int, Measured | LeftOut | VlmkitError]:
        try:
            return index, self.making.size(index)
        except VlmkitError as error:
            return index, error


@dataclass
class Load:
    """What a rank has of a step."""

    tokens: int = 0
    visual: int = 0
    indices: list[int] = field(default_factory=list)

    def add(self, index: int, size: Measured) -> None:
        self.tokens, self.visual = self.tokens + size.tokens, self.visual + size.visual
        self.indices.append(index)


def place(loads: list[Load], size: Measured, tokens: int) -> Load | None:
    """The rank that sees least, of those with room: each takes its share of the tokens, or one long conversation."""
    if sum(load.tokens for load in loads) + size.tokens > tokens:
        return None
    room = tokens // len(loads)
    free = [load for load in loads if not load.indices or load.tokens + size.tokens <= room]
    return min(free, key=lambda load: (load.visual * bool(size.visual), load.tokens), default=None)


def _words(content: Any) -> bool:
    """Whether an answer says anything."""
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return any(isinstance(text, str) and text.strip() for text in texts)
