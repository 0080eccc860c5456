"""What may be written as a conversation, and one clear error for what may not (T02, T03, and addresses)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from vlmkit.errors import (
    MediaFetchError,
    MediaFormatError,
    MediaLimitError,
    PlaceholderError,
    PromptError,
    VlmkitError,
)
from vlmkit.limits import Limits
from vlmkit.processing.conversation import read
from vlmkit.types import Seen, Turn


def test_words_and_parts_mean_the_same() -> None:
    turns = [Turn("user", ["q"])]
    for messages in ("q", [{"role": "user", "content": "q"}], ({"role": "user", "content": ["q"]},),
                     [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
                     [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]):  # fmt: skip
        assert read(messages).turns == turns


def test_visuals_are_numbered_in_reading_order() -> None:
    found = read([{"role": "user", "content": [{"type": "image", "image": b"a"}, "x", {"type": "video", "path": "b"}]},
                  {"role": "assistant", "content": "y"},
                  {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,Yw=="}}]}])
    assert [part for turn in found.turns for part in turn.content] == [Seen(0), "x", Seen(1, "video"), "y", Seen(2)]
    assert found.media == [("image", b"a"), ("video", "b"), ("image", b"c")]


@pytest.mark.parametrize("part", [
    {"type": "image", "url": "https://example.org/x.png"}, {"type": "image", "image": "http://127.0.0.1/x.png"},
    {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}, {"type": "video", "url": "https://example.org/v"},
])  # fmt: skip
def test_addresses_are_not_fetched(part: dict) -> None:
    with pytest.raises(MediaFetchError) as caught:
        read([{"role": "user", "content": [part, "q"]}])
    assert caught.value.public == "address not allowed"


BAD: dict[str, tuple[Any, type[VlmkitError]]] = {
    "role": ([{"role": "tool", "content": "q"}], PromptError),
    "part": ([{"role": "user", "content": [{"type": "audio", "audio": "x"}]}], PromptError),
    "no source": ([{"role": "user", "content": [{"type": "image"}]}], PlaceholderError),
    "two sources": ([{"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]}], PlaceholderError),
    "no content": ([{"role": "user"}], PromptError),
    "nothing": ([], PromptError),
    "a number": (7, PromptError),
    "a number as text": ([{"role": "user", "content": [{"type": "text", "text": 7}]}], PromptError),
    "data address": ([{"role": "user", "content": [{"type": "image", "url": "data:image/png,xyz"}]}], MediaFormatError),
    "base64": ([{"role": "user", "content": [{"type": "image", "base64": "%%%"}]}], MediaFormatError),
    "17 pictures": ([{"role": "user", "content": [{"type": "image", "image": b"x"}] * 17}], MediaLimitError),
    "1025 messages": ([{"role": "user", "content": "q"}] * 1025, PromptError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations_are_one_clear_error(name: str) -> None:
    conversation, kind = BAD[name]
    with pytest.raises(VlmkitError) as caught:
        read(conversation)
    assert type(caught.value) is kind
    assert "messages" in str(caught.value) or kind is MediaLimitError or name == "1025 messages"


def test_limits_of_text() -> None:
    with Limits(text_max_chars=3), pytest.raises(PromptError, match=r"text\.max_chars"):
        read([{"role": "user", "content": "ab"}, {"role": "user", "content": "cd"}])


def test_base64_may_be_broken_into_lines() -> None:
    picture = bytes(range(200))
    lines = base64.encodebytes(picture)
    for text in (lines, lines.decode(), lines.replace(b"\n", b"\r\n").decode(), base64.b64encode(picture).decode()):
        assert read([{"role": "user", "content": [{"type": "image", "base64": text}]}]).media[0][1] == picture
    for bad in ("ä", "@@@", 3, ["QQ=="], "QQ"):
        with pytest.raises(MediaFormatError, match="base64"):
            read([{"role": "user", "content": [{"type": "image", "base64": bad}]}])


@pytest.mark.parametrize("kind", [["text"], None, 3, {"text": "q"}])
def test_a_type_is_a_word(kind: Any) -> None:
    with pytest.raises(PromptError, match=r"messages\[0\]\.content\[0\]: a part has a type"):
        read([{"role": "user", "content": [{"type": kind, "text": "q"}]}])
