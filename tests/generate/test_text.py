"""Text as it arrives: whole characters, no piece of a stop string, and in the end exactly what was decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from vlmkit.generate.text import Writer
from vlmkit.processing.tokenizer import Tokenizer

SPECIAL = tokenizers.AddedToken("</s>", special=True)


def byte_level() -> Tokenizer:
    """GPT-2's way: every token is a run of bytes, characters may be cut anywhere."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([SPECIAL])
    return Tokenizer(raw.to_str())


def byte_fallback() -> Tokenizer:
    """Llama's way: words that begin with a bar, and bytes for what is no word."""
    words = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁a", "▁cat", "s", "▁sat", "!"]
    vocab = {w: i for i, w in enumerate(words)}
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([SPECIAL])
    return Tokenizer(raw.to_str())


BYTES, WORDS = byte_level(), byte_fallback()
TEXT = "naïve 猫 🐈‍⬛ sat…"


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Text byte by byte."""
    alphabet: Any = json.loads(tokenizer.source)["model"]["vocab"]
    if tokenizer is WORDS:
        return [alphabet[f"<0x{b:02X}>"] for b in text.encode()]
    return tokenizer.raw.encode(text, add_special_tokens=False).ids


def pieces(writer: Writer, ids: list[int]) -> list[str]:
    return [*(writer.add(id) for id in ids), writer.finish()]


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["byte-level", "byte-fallback"])
def test_characters_come_whole(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, TEXT)
    assert len(ids) == len(TEXT.encode()) > len(TEXT)
    got = pieces(Writer(tokenizer.decode), ids)
    assert "".join(got) == TEXT
    assert [p for p in got if p] == list(TEXT)  # each as soon as its last byte is there


def test_spaces_between_words_stay() -> None:
    """A decoder drops the space before the first word of a text, which no later word is."""
    ids = [WORDS.raw.token_to_id(w) for w in ("▁a", "▁cat", "s", "▁sat", "</s>", "▁a", "▁", "▁cat", "!")]
    got = pieces(Writer(WORDS.decode), ids)
    assert got == ["a", " cat", "s", " sat", "", " a", " ", " cat", "!", ""]
    assert "".join(got) == WORDS.decode(ids)


@given(st.lists(st.integers(0, BYTES.size - 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_as_decoded(ids: list[int]) -> None:
    assert "".join(pieces(Writer(BYTES.decode), ids)) == BYTES.decode(ids)


@given(st.text(max_size=30), st.data())
@settings(max_examples=200, deadline=None)
def test_any_text_ends_as_written(text: str, data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from([BYTES, WORDS]))
    text = text.lstrip(" ")  # llama's decoder drops one leading space
    writer = Writer(tokenizer.decode)
    assert "".join(pieces(writer, ids_of(tokenizer, text))) == text == writer.text


def test_a_cut_character_is_shown_as_the_tokenizer_shows_it() -> None:
    got = pieces(Writer(BYTES.decode), ids_of(BYTES, "a猫")[:-1])
    assert got == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stops", "wanted", "stopped"),
    [
        ("yes\n### Human: no", ("###",), "yes\n", True),
        ("a ## b # c", ("###",), "a ## b # c", False),
        ("a ##", ("###",), "a ##", False),
        ("one two", ("two", "one t"), "", True),
        ("aab", ("ab",), "a", True),
        ("ababac", ("abac",), "ab", True),
        ("猫、犬", ("、",), "猫", True),
        ("abc", (), "abc", False),
    ],
)
def test_stop_strings(text: str, stops: tuple[str, ...], wanted: str, stopped: bool) -> None:
    writer, given = Writer(BYTES.decode, stops), ""
    for id in ids_of(BYTES, text):
        given += writer.add(id)
        assert wanted.startswith(given), "something was given out that belongs to a stop string"
        if writer.stopped:
            break
    given += writer.finish()
    assert (given, writer.text, writer.stopped) == (wanted, wanted, stopped)


@given(st.text("ab#", max_size=20), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_stop_strings_cut_where_the_first_one_is_complete(text: str, stops: list[str]) -> None:
    """The first position at which some stop string has been said in full ends the answer before it."""
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stops)]
    wanted = text
    if ends:
        said = text[: ends[0]]
        wanted = said[: min(said.find(s) for s in stops if s in said)]
    writer = Writer(BYTES.decode, stops)
    assert "".join(pieces(writer, ids_of(BYTES, text))) == wanted
