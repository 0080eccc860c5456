"""The tokenizer of `tiny`: whole words of the drawn world, bytes for all other text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vlmkit.parts.datasets.drawing import COLOURS, SHAPES
from vlmkit.parts.datasets.scenes import SKILLS, scene
from vlmkit.parts.datasets.wordings import WORDS

FILE = Path(__file__).parents[2] / "presets" / "tiny" / "tokenizer.json"
TOKENIZER = Tokenizer.from_file(str(FILE))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("word", [*SHAPES, *COLOURS, *WORDS, "yes", "no", "first", "second", "same", "up", "down"])
def test_answers_are_one_token(word: str) -> None:
    assert len(TOKENIZER.encode(word).ids) == 1
    assert len(TOKENIZER.encode("<|im_start|>assistant\n" + word + "<|im_end|>").ids) == 5


def test_numbers_are_read_digit_by_digit() -> None:
    assert TOKENIZER.encode("42").tokens == ["4", "2"]


def test_questions_are_short() -> None:
    """A question that is measured is about one token a word; some that only teach have words of more tokens."""
    for skill in SKILLS:
        for question in scene(2**41, skill, 8).questions:
            assert len(TOKENIZER.encode(question.text).ids) <= len(question.text.split()) * 1.3 + 3, question


def test_special_tokens_are_one_id() -> None:
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"):
        assert TOKENIZER.encode(name).ids == [TOKENIZER.token_to_id(name)]
    assert TOKENIZER.get_vocab_size() < 480
