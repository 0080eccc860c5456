"""Chats written as jinja templates: transformers renders what we render, and its tokenizer reads what ours reads."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import small  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.errors import TemplateError  # noqa: E402
from vlmkit.parts.chats import template, turns  # noqa: E402
from vlmkit.processing.tokenizer import Tokenizer  # noqa: E402
from vlmkit.types import Learned, Said, Seen, Turn  # noqa: E402

pytestmark = pytest.mark.parity
WORDS = ["", " ", "a", "What is it?", "\nx", "x\n", " y ", "\n", "é\u2003", "“q”", "{{ 1 }}", "say \"no\""]
PIECES: dict[str, Any] = {"": {}, "system": {"system": "Be \"kind\".\n"}, "none": {"system": ""},
                          "visual": {"visual": ["<im_start>", "<im_end>"]}}
USED = sorted({preset.chat.style for name in vlmkit.presets() if not name.startswith("runs/")
               for preset in [vlmkit.compose(name)] if preset.chat.use == "turns"})  # fmt: skip


def chat(style: str, **fields: Any) -> Any:
    return turns.Config.model_validate_json(json.dumps({"style": style, **fields})).build()


def conversation(draw: random.Random) -> list[dict[str, Any]]:
    """Any turns, any parts, any spaces."""
    def content() -> Any:
        kinds = draw.choices(["image", "video", "text"], [3, 2, 5], k=draw.randint(0, 5))
        parts = [{"type": kind, **({"text": draw.choice(WORDS)} if kind == "text" else {})} for kind in kinds]
        return parts if draw.random() < 0.85 else draw.choice(WORDS)
    first = [{"role": "system", "content": content()}] if draw.random() < 0.3 else []
    roles = [("user", "assistant")[at % 2] if draw.random() < 0.9 else "user" for at in range(draw.randint(1, 4))]
    return first + [{"role": role, "content": content()} for role in roles]


def as_turns(messages: list[dict[str, Any]]) -> list[Turn]:
    count = iter(range(99))
    return [Turn(m["role"], [m["content"]] if isinstance(m["content"], str) else
                 [p["text"] if p["type"] == "text" else Seen(next(count), p["type"]) for p in m["content"]])
            for m in messages]  # fmt: skip


def text(pieces: list[Any]) -> str:
    return "".join(f"<{p.kind}>" if isinstance(p, Seen) else p.text if isinstance(p, Said | Learned) else p
                   for p in pieces)


def rendered(source: str, messages: list[dict[str, Any]], reply: bool) -> str:
    said: str = render_jinja_template(conversations=[messages], chat_template=source, add_generation_prompt=reply)[0][0]
    return said


@pytest.mark.parametrize("fields", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("style", turns.styles())
def test_every_style_writes_the_same_text(style: str, fields: dict[str, Any]) -> None:
    ours, draw = chat(style, **fields), random.Random(style)
    source = ours.jinja("<image>", "<video>")
    for _ in range(25):
        messages, reply = conversation(draw), draw.random() < 0.5
        assert rendered(source, messages, reply) == text(ours.render(as_turns(messages), reply)), messages


@pytest.mark.parametrize("style", turns.styles())
def test_we_read_our_own_template(style: str) -> None:
    """As after an export that is loaded again: the same text, and the same words are learned."""
    ours, draw = chat(style), random.Random(style)
    again = template.Config(text=ours.jinja("<image>", "<video>"), stops=tuple(ours.stops)).build()
    assert again.typed
    for _ in range(5):
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": draw.choice(WORDS[2:5])}]},
                    {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
        one, two = (c.render(as_turns(messages), True) for c in (ours, again))
        assert text(one) == text(two)
        assert [p for p in one if isinstance(p, Seen)] == [p for p in two if isinstance(p, Seen)]
        assert learned(one) == learned(two)


def learned(pieces: list[Any]) -> str:
    return "".join(p.text for p in pieces if isinstance(p, Learned) or (isinstance(p, Said) and p.learned))


@pytest.mark.parametrize("style", USED)
def test_styles_of_presets_give_the_same_ids(style: str) -> None:
    bos = not style.startswith(("qwen", "interleave"))
    ours, raw = chat(style), small.tokenizer(bos)
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=small.Tokenizer.from_str(raw))
    draw, mine = random.Random(style), Tokenizer(raw)
    for _ in range(20):
        messages, reply = conversation(draw), draw.random() < 0.5
        wanted = words(rendered(ours.jinja("<image>", "<video>"), messages, reply))["input_ids"]
        marks = {"image": "<image>", "video": "<video>"}
        assert mine.encode(ours.render(as_turns(messages), reply), marks).ids == wanted


PLAIN = ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
         "{% if add_generation_prompt %}[assistant] {% endif %}")  # as language models without pictures have it


def test_a_template_of_texts_gets_texts() -> None:
    ours = template.Config(text=PLAIN).build()
    assert not ours.typed
    source = ours.jinja("<image>", "<video>")
    draw = random.Random(0)
    for _ in range(40):
        messages = conversation(draw)
        assert rendered(source, messages, True) == text(ours.render(as_turns(messages), True)), messages


def test_a_template_is_written_as_it_is() -> None:
    source = turns.Config(style="qwen_1_5").build().jinja("<image>", "<video>")
    ours = template.Config(text=source).build()
    assert ours.jinja("<image>", "<video>") == source
    with pytest.raises(TemplateError, match="writes '<image>' for each image, the tokenizer has '<img>'"):
        ours.jinja("<img>", "<video>")


def test_a_late_system_turn_is_refused_there_too() -> None:
    late = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    with pytest.raises(Exception, match="a system turn can only come first"):
        rendered(turns.Config(style="qwen_1_5").build().jinja("<image>", "<video>"), late, True)
