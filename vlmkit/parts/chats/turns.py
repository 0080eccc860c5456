"""Turns written by a table of styles: vicuna_v1, qwen_1_5, chatml_direct, mistral_instruct, ..."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, field_validator

from vlmkit.contracts import PartConfig
from vlmkit.errors import PromptError
from vlmkit.types import Learned, Said, Seen, Turn

from . import turns_jinja

Piece = str | Said | Seen | Learned


@cache
def styles() -> dict[str, dict[str, Any]]:
    """All styles of `styles.yaml`, by name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast, where libyaml is
    found: dict[str, dict[str, Any]] = yaml.load(Path(__file__).with_name("styles.yaml").read_text("utf-8"), loader)
    return found


class Config(PartConfig):
    """The style, and what is said differently in it."""

    style: str = Field(description="how turns are written: a name of styles.yaml")
    system: str | None = Field(None, description="the system text; null is the style's own, '' is none")
    visual: tuple[str, str] | None = Field(None, description="text around each visual, such as <im_start> and <im_end>")
    clip: str = Field("", description="a line after each clip; {seconds}, {frames} and {times} are filled in")

    @field_validator("style")
    @classmethod
    def _known(cls, style: str) -> str:
        if style not in styles():
            raise ValueError(f"no style named {style!r}; there are: {', '.join(sorted(styles()))}")
        return style


class Style(NamedTuple):
    """One block of styles.yaml; what the fields mean is written there."""

    system: str
    opening: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str, str]
    reply: str
    stops: tuple[str, ...]
    inside: bool = False
    first: str | None = None
    visual: tuple[str, str] = ("", "")
    apart: str = ""
    silent: bool = False


class Turns:
    def __init__(self, style: Style) -> None:
        self.style = style
        self.stops = tuple(style.stops)

    def render(self, turns: list[Turn], reply: bool) -> list[Piece]:
        """The whole conversation as pieces; `reply` opens the answer that is asked for."""
        return [piece for piece in self._pieces(turns, reply) if not isinstance(piece, str) or piece]

    def jinja(self, image: str, video: str) -> str:
        """The same as a chat template; `image` and `video` stand for a visual."""
        return turns_jinja.write(self.style, image, video)

    def _pieces(self, turns: list[Turn], reply: bool) -> Iterator[Piece]:
        style = self.style
        system: list[Piece] = [style.system] if style.system else []
        if turns and turns[0].role == "system":
            system, turns = [*self._words(turns[0].content)], turns[1:]
        opening: list[Piece] = [style.opening[0], *system, style.opening[1]] if system else []
        if not style.inside:
            yield from opening
            opening = []
        first = True
        for turn in _set_apart(turns, style.apart) if style.apart else turns:
            if turn.role == "system":
                raise PromptError("a system turn can only come first", where="messages")
            if turn.role == "assistant":
                yield style.assistant[0]
                yield from self._words(turn.content, learned=True)
                yield Learned(style.assistant[1])
                yield style.assistant[2]
                continue
            yield style.first if first and style.first is not None else style.user[0]
            yield from opening
            yield from self._words([p for p in turn.content if isinstance(p, Seen)] if style.silent else turn.content)
            yield style.user[1]
            opening, first = [], False
        if reply:
            yield style.reply

    def _words(self, content: Any, learned: bool = False) -> Iterator[Piece]:
        """A visual stands on a line of its own, unless the words beside it bring their own space."""
        before: str | Seen | None = None
        for part in content:
            if before is not None and not self.style.silent and _touches(before, part):
                yield "\n"
            if isinstance(part, Seen):
                yield from (self.style.visual[0], part, self.style.visual[1])
            elif part:
                yield Said(part, learned)
            before = part or before


def _touches(left: str | Seen, right: str | Seen) -> bool:
    """Does a visual stand against a visual or a letter?"""
    if isinstance(left, str) and isinstance(right, str):
        return False
    open_left = isinstance(left, Seen) or not left[-1:].isspace()
    open_right = isinstance(right, Seen) or (bool(right) and not right[0].isspace())
    return open_left and open_right


def _set_apart(turns: list[Turn], answer: str) -> Iterator[Turn]:
    """Each turn's visuals become a turn of their own, answered with a fixed word."""
    for turn in turns:
        seen = [part for part in turn.content if isinstance(part, Seen)]
        if seen:
            yield Turn("user", seen)
            yield Turn("assistant", [answer])
        yield Turn(turn.role, [part for part in turn.content if not isinstance(part, Seen)])


def build(config: Config) -> Turns:
    style = Style(**styles()[config.style])
    if config.system is not None:
        style = style._replace(system=config.system)
    if config.visual is not None:
        style = style._replace(visual=config.visual)
    return Turns(style)


EXAMPLE: dict[str, Any] = {"style": "qwen_1_5"}
