"""Conversations to batches: pixels, ids, slots and labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from ..errors import ContextLengthError, MediaLimitError, PresetError, TokenizerError
from ..limits import current
from ..model.rehearse import count
from ..types import IGNORED, Batch, Layout, Sample, Seen, Turn, Visual
from . import conversation
from .batch import lay
from .clips import Frames, probe
from .files import naming
from .pictures import Picture, look
from .threads import Ahead
from .tokenizer import Prompt, Tokenizer

Policy = Literal["refuse", "drop_media", "drop_turns"]


class Planned(NamedTuple):
    """A picture or clip before its pixels are looked at."""

    source: Picture | Frames
    layout: Layout
    wanted: list[int]  # frames of a clip
    tokens: int


class Measured(NamedTuple):
    """How many tokens a conversation has, and how many of them are pictures and clips."""

    tokens: int
    visual: int


class Processor:
    """Prepares conversations for one model.

    skeleton  the model on the meta device: it counts tokens and cuts tiles, and needs no weights
    """

    def __init__(self, preset: Any, skeleton: Any, tokenizer: Tokenizer) -> None:
        self.preset, self.skeleton, self.tokenizer = preset, skeleton, tokenizer
        self.chat = preset.chat.build()
        given = preset.tokenizer
        self.marks = {"image": given.image if given else "<image>", "video": given.video if given else "<video>"}
        self.context: int = skeleton.decoder.context
        if tokenizer.size > skeleton.decoder.vocab:
            raise TokenizerError(f"the tokenizer gives ids up to {tokenizer.size - 1}, the decoder knows "
                                 f"{skeleton.decoder.vocab}", where=tokenizer.where,
                                 hint="set tokenizer.from to the folder whose language model it is")
        ends = {stop: tokenizer.id_of(stop) for stop in self.chat.stops}
        self.stop_ids: tuple[int, ...] = tuple(id for id in ends.values() if id is not None)
        self.stop_strings: tuple[str, ...] = tuple(stop for stop, id in ends.items() if id is None)

    def placeholder(self, kind: Literal["image", "video"]) -> int:
        """The id at the slots of a kind; 0 where the tokenizer has no token for it."""
        return self.tokenizer.id_of(self.marks[kind]) or 0

    def __call__(self, conversations: Any, reply: bool = True, labels: bool = False, too_long: Policy = "refuse"
                 ) -> Batch:
        """One conversation, or a list of them, to one batch. `reply` opens the answer the model is to write."""
        several = isinstance(conversations, list | tuple) and conversations and not isinstance(conversations[0], dict)
        with Ahead() as ahead:
            drafts = [self._draft(c, reply, labels, too_long, ahead)
                      for c in (conversations if several else [conversations])]
            return lay([draft() for draft in drafts])

    def sample(self, messages: Any, reply: bool = True, labels: bool = False, too_long: Policy = "refuse",
               visuals: list[Visual] | None = None) -> Sample:
        """One conversation as numbers.   visuals: of a conversation that shows the same, to cut no pixel again"""
        with Ahead() as ahead:
            return self._draft(messages, reply, labels, too_long, ahead, visuals)()

    def measure(self, messages: Any) -> Measured:
        """How long a conversation to learn from is, by text and headers: what prepares it counts, but cuts no pixel."""
        prompt, planned = self._prompt(messages, False, "refuse")
        visual = sum(planned[seen.index].tokens for seen in prompt.seen)
        return Measured(len(prompt.ids) - len(prompt.seen) + visual, visual)

    def _draft(self, messages: Any, reply: bool, labels: bool, too_long: Policy, ahead: Ahead,
               cut: list[Visual] | None = None) -> Callable[[], Sample]:
        """Its text, while pictures are decoded ahead."""
        return self._fill(*self._prompt(messages, reply, too_long), labels, ahead, cut)

    def _prompt(self, messages: Any, reply: bool, too_long: Policy) -> tuple[Prompt, list[Planned]]:
        """Its ids, one for each visual, and how long each visual is."""
        turns, media = conversation.read(messages)
        planned = self._plan(media)
        turns = self._note(turns, planned)
        while True:
            prompt = self._read(turns, reply)
            total = len(prompt.ids) + sum(planned[seen.index].tokens - 1 for seen in prompt.seen)
            if total <= self.context:
                return prompt, planned
            turns = self._shorten(turns, prompt, planned, total, too_long)

    def _plan(self, media: Sequence[tuple[Literal["image", "video"], Any]]) -> list[Planned]:
        """Open headers, cut on paper, count tokens."""
        alone = sum(kind == "image" for kind, _ in media) == 1  # clips do not make a picture less alone
        planned: list[Planned] = []
        pixels = 0
        for kind, source in media:
            stream = getattr(self.skeleton, kind, None)
            if stream is None:
                raise PresetError(f"{self.preset.name} has no {kind} stream", where=kind)
            with naming(f"{kind} {len(planned) + 1}"):
                if kind == "image":
                    picture = look(source)
                    layout = stream.tiler.plan(picture.height, picture.width, alone)
                    entry = Planned(picture, layout, [], count(self.skeleton, layout))
                    pixels += picture.height * picture.width
                else:
                    clip = probe(source)
                    wanted = clip.choose(stream.sampler)
                    layout = Layout("video", clip.height, clip.width, frames=len(wanted))
                    entry = Planned(clip, layout, wanted, count(self.skeleton, layout))
            planned.append(entry)
        if pixels > (most := current().media_max_total_pixels):
            raise MediaLimitError("the pictures are too large together", limit=most, got=pixels,
                                  setting="media.max_total_pixels")
        return planned

    def _note(self, turns: list[Turn], planned: list[Planned]) -> list[Turn]:
        """Say after each clip what the chat's `clip` says about one, such as when its frames are shown."""
        line = getattr(self.preset.chat, "clip", "")
        if not line:
            return turns
        told: list[Turn] = []
        for turn in turns:
            content: list[str | Seen] = []
            for part in turn.content:
                content.append(part)
                if isinstance(part, Seen) and part.kind == "video":
                    content.append(_about(line, planned[part.index]) + "\n")
            told.append(Turn(turn.role, content))
        return told

    def _read(self, turns: list[Turn], reply: bool) -> Prompt:
        return self.tokenizer.encode(self.chat.render(turns, reply), self.marks, self.stop_ids)

    def _shorten(self, turns: list[Turn], prompt: Prompt, planned: list[Planned], total: int, policy: Policy
                 ) -> list[Turn]:
        """Leave out the oldest visual or the oldest exchange, whole. A picture is never cut."""
        if policy == "drop_media" and prompt.seen:
            oldest = prompt.seen[0]
            warnings.warn(f"{total} tokens do not fit {self.context}: left out {_name(oldest, planned)}", stacklevel=5)
            return [Turn(turn.role, [part for part in turn.content if part != oldest]) for turn in turns]
        if policy == "drop_turns":
            start = int(turns[0].role == "system")
            later = [at for at, turn in enumerate(turns) if turn.role == "user" and at > start]
            if later:
                warnings.warn(f"{total} tokens do not fit {self.context}: left out {later[0] - start} turns",
                              stacklevel=5)
                return turns[:start] + turns[later[0] :]
        shares = {seen: planned[seen.index].tokens for seen in prompt.seen}
        visual = sum(shares.values())
        text = f"{total} tokens, of which {visual} are pictures and clips; the model reads {self.context}"
        if shares and (largest := max(shares, key=lambda seen: shares[seen])):
            text += f"; the largest is {_name(largest, planned)}"
        raise ContextLengthError(text, limit=self.context, got=total, hint="send fewer or smaller pictures, fewer "
                                 "frames or less text, or allow too_long='drop_media' or 'drop_turns'")

    def _fill(self, prompt: Prompt, planned: list[Planned], labels: bool, ahead: Ahead, cut: list[Visual] | None
              ) -> Callable[[], Sample]:
        """Repeat each visual's id as often as it has tokens, and cut its pixels."""
        times, grown = [1] * len(prompt.ids), 0
        slots = [torch.empty(0, dtype=torch.int64)]
        said = [id if learned else IGNORED for id, learned in zip(prompt.ids, prompt.learned, strict=True)]
        for at, seen in zip(prompt.slots, prompt.seen, strict=True):
            tokens = planned[seen.index].tokens
            slots.append(torch.arange(at + grown, at + grown + tokens))
            times[at], said[at], grown = tokens, IGNORED, grown + tokens - 1
        repeats = torch.tensor(times)
        visuals = [(ahead if visual.kind == "image" else partial)(self._cut, visual, planned[visual.index])
                   for visual in prompt.seen if cut is None]  # a clip waits for its turn: it has threads of its own
        learned = torch.tensor(said).repeat_interleave(repeats) if labels else None
        ids = torch.tensor(prompt.ids).repeat_interleave(repeats)
        return lambda: Sample(ids, torch.cat(slots), cut or [visual() for visual in visuals], learned)

    def _cut(self, seen: Seen, planned: Planned) -> Visual:
        """Pixels -> uint8 [tiles, 3, side, side]"""
        with naming(f"{seen.kind} {seen.index + 1}"):
            return self._tiles(planned)

    def _tiles(self, planned: Planned) -> Visual:
        stream = getattr(self.skeleton, planned.layout.kind)
        if isinstance(planned.source, Picture):
            return Visual(stream.tiler.cut(planned.source.decode(), planned.layout), planned.layout)
        plan = stream.tiler.plan(planned.layout.height, planned.layout.width, False)
        frames = planned.source.decode(sorted(set(planned.wanted)))  # one at a time: a frame may be 100 MB
        tiles = {at: stream.tiler.cut(frame, plan) for at, frame in frames}
        return Visual(torch.cat([tiles[at] for at in planned.wanted]), planned.layout)


def _name(seen: Seen, planned: list[Planned]) -> str:
    layout = planned[seen.index].layout
    size = f"{layout.height} x {layout.width}" + (f", {layout.frames} frames" if layout.frames else "")
    return f"{seen.kind} {seen.index + 1} ({size}: {planned[seen.index].tokens} tokens)"


def _about(line: str, planned: Planned) -> str:
    clip = planned.source
    assert isinstance(clip, Frames)
    times = ",".join(f"{clip.times[at] - clip.times[0]:.2f}s" for at in planned.wanted)
    for name, value in (("seconds", f"{clip.duration:.2f}"), ("frames", str(len(planned.wanted))), ("times", times)):
        line = line.replace(f"{{{name}}}", value)
    return line
