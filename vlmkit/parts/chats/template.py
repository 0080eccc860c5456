"""A chat template of a checkpoint: jinja text, as transformers' `apply_chat_template` reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vlmkit.contracts import PartConfig
from vlmkit.errors import PlaceholderError, PromptError, TemplateError
from vlmkit.limits import current
from vlmkit.types import Learned, Said, Seen, Turn

from .kitchen import kitchen
from .sandbox import END, LEARNED

Piece = str | Said | Seen | Learned
MOST = 32_000  # different characters; each becomes a private one, of one range for answers and one for the rest
RANGES = {False: 0xF0000, True: 0xF8000}
SAID = re.compile("|".join("[{0}](?:[{0}\\s]*[{0}])?".format(f"{chr(r)}-{chr(r + MOST)}") for r in RANGES.values()))

FLAT = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set said -%}
{%- if message["content"] is string -%}{{- message["content"] -}}{%- else -%}
{%- for part in message["content"] -%}
{{- $image ~ "\\n" if part["type"] == "image" else $video ~ "\\n" if part["type"] == "video" else part["text"] -}}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- set flat.messages = flat.messages + [dict(message, content=said)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""  # before a template that knows texts only


class Config(PartConfig):
    """The template, as text or as a file, and the names it is given."""

    text: str | None = Field(None, description="the template itself")
    file: str | None = Field(None, description="a file that holds it, such as chat_template.jinja")
    image: str = Field("<image>", description="what the template writes for a picture")
    video: str = Field("<video>", description="what the template writes for a clip")
    stops: tuple[str, ...] = Field((), description="strings that end an answer, such as </s>")
    bos: str = Field("", description="the template's bos_token")
    eos: str = Field("", description="the template's eos_token")

    @model_validator(mode="after")
    def _one(self) -> Config:
        if (self.text is None) == (self.file is None):
            raise ValueError("give either `text` or `file`")
        return self


class Template:
    """Speech goes through the template as private characters: it can be trimmed, but never be taken for markup."""

    def __init__(self, source: str, config: Config, where: str) -> None:
        self.source, self.where = source, where
        self.stops = config.stops
        self.marks = {"image": config.image, "video": config.video}
        self._names = {"bos_token": config.bos, "eos_token": config.eos}

    def render(self, turns: list[Turn], reply: bool) -> list[Piece]:
        """The conversation as the template writes it. Text a `{% generation %}` block holds is learned; without
        such blocks the assistant's words and a stop string right behind them are."""
        mask = Mask(turns)
        messages = [{"role": turn.role, "content": self._content(turn, mask)} for turn in turns]
        text = self._render(messages, reply)
        blocks = LEARNED in text
        pieces: list[Piece] = []
        learned = False
        for part in re.split(f"([{LEARNED}{END}])", text):
            if part in (LEARNED, END):
                learned = part == LEARNED
            else:
                pieces += self._pieces(part, mask, learned if blocks else None)
        if not blocks:
            pieces = [*_close(pieces, self.stops)]
        return _place(pieces, turns, self.where)

    def _render(self, messages: list[dict[str, Any]], reply: bool) -> str:
        given = {"messages": messages, "add_generation_prompt": reply, "tools": None, "documents": None}
        return kitchen.render(self.source, {**given, **self._names}, self.where)

    def _content(self, turn: Turn, mask: Mask) -> str | list[dict[str, str]]:
        """Typed parts, or one text for templates that know no parts."""
        role = turn.role == "assistant"
        if not self.typed:
            parts = (self.marks[p.kind] + "\n" if isinstance(p, Seen) else mask.put(p, role) for p in turn.content)
            return "".join(parts)
        return [{"type": p.kind} if isinstance(p, Seen) else {"type": "text", "text": mask.put(p, role)}
                for p in turn.content]

    @cached_property
    def typed(self) -> bool:
        """Does the template read lists of parts? One that does not, writes them as Python would."""
        probe: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "q"}]}
        try:
            text = self._render([probe], True)
        except TemplateError as error:
            if error.setting:  # a limit
                raise
            return "q" not in self._render([{**probe, "content": "q"}], True)  # tell of the fault, if it is another one
        if "q" in text:
            return "'text'" not in text
        return "q" not in self._render([{**probe, "content": "q"}], True)  # it may write no questions at all

    def jinja(self, image: str, video: str) -> str:
        """The template, for engines that always give it lists of parts; `image` and `video` stand for a visual."""
        for kind, wanted in (("image", image), ("video", video)):
            if (mark := self.marks[kind]) != wanted and mark in self.source:
                raise TemplateError(f"writes {mark!r} for each {kind}, the tokenizer has {wanted!r}", where=self.where,
                                    hint=f"set tokenizer.{kind} to {mark!r}")
        if self.typed:
            return self.source
        return FLAT.replace("$image", json.dumps(image)).replace("$video", json.dumps(video)) + self.source

    def _pieces(self, text: str, mask: Mask, block: bool | None) -> Iterator[Piece]:
        """Template text and speech. `block`: is it inside a generation block; None when there are none."""
        at = 0
        for found in SAID.finditer(text):
            yield from self._written(text[at : found.start()], block)
            said, learned = mask.take(found[0])
            yield Said(said, learned if block is None else block)
            at = found.end()
        yield from self._written(text[at:], block)

    def _written(self, text: str, block: bool | None) -> Iterator[Piece]:
        """Template text: placeholders are the places of visuals, numbered later."""
        kinds: dict[str, Literal["image", "video"]] = {self.marks["image"]: "image", self.marks["video"]: "video"}
        for part in re.split("(" + "|".join(map(re.escape, kinds)) + ")", text):
            if part in kinds:
                yield Seen(-1, kinds[part])
            elif part:
                yield Learned(part) if block else part


class Mask:
    """Each character somebody said, but for spaces, as a private character, and back."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        words = (part for turn in turns for part in turn.content if isinstance(part, str))
        letters = {c for part in words for c in part if not c.isspace()}
        if len(letters) > MOST:
            raise PromptError(f"more than {MOST} different characters in one conversation")
        codes = {kind: {ord(c): start + at for at, c in enumerate(letters)} for kind, start in RANGES.items()}
        self._there = codes
        self._back = {private: c for code in codes.values() for c, private in code.items()}

    def put(self, text: str, learned: bool) -> str:
        return text.translate(self._there[learned])

    def take(self, text: str) -> tuple[str, bool]:
        """The words, and whether they are the assistant's."""
        return text.translate(self._back), ord(text[0]) >= RANGES[True]


def _close(pieces: Sequence[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The stop string behind an answer is learned too."""
    answered = False
    for piece in pieces:
        stop = next((s for s in stops if isinstance(piece, str) and piece.lstrip().startswith(s)), None)
        if answered and stop is not None and isinstance(piece, str):
            end = piece.index(stop) + len(stop)
            yield Learned(piece[:end])
            piece = piece[end:]
        answered = isinstance(piece, Said) and piece.learned
        if piece:
            yield piece


def _place(pieces: Sequence[Piece], turns: Iterable[Turn], where: str) -> list[Piece]:
    """Number the places: the first picture's place is the first picture's."""
    given: dict[str, list[Seen]] = {"image": [], "video": []}
    for turn in turns:
        for part in turn.content:
            if isinstance(part, Seen):
                given[part.kind].append(part)
    for kind, seen in given.items():
        places = sum(isinstance(piece, Seen) and piece.kind == kind for piece in pieces)
        if places != len(seen):
            raise PlaceholderError(f"the template writes {places} places for {len(seen)} {kind} parts", where=where)
    rest = {kind: iter(seen) for kind, seen in given.items()}
    return [next(rest[piece.kind]) if isinstance(piece, Seen) else piece for piece in pieces]


def build(config: Config) -> Template:
    if config.text is not None:
        source, where = config.text, "template"
    else:
        source, where = _read(Path(str(config.file))), str(config.file)
    most = current().template_max_bytes
    if len(source.encode()) > most:
        raise TemplateError("too large", where=where, limit=most, got=len(source), setting="template.max_bytes")
    return Template(source, config, where)


def _read(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > current().template_max_bytes:
            raise TemplateError("not a file of at most template.max_bytes", where=path)
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"cannot be read: {type(error).__name__}", where=path) from None


EXAMPLE: dict[str, Any] = {
    "text": "{% for m in messages %}{{ m.role | upper }}: {% for p in m.content %}"
    "{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
}
