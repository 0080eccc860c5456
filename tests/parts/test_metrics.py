"""Metrics against worked examples of their public definitions."""

from __future__ import annotations

from typing import Any

import pytest

from vlmkit import registry
from vlmkit.errors import DataError
from vlmkit.parts.metrics.anls import distance
from vlmkit.parts.metrics.vqa import spelled


def score(name: str, answer: str, *right: str, **fields: Any) -> float:
    entry = registry.find("metric", name)
    value: float = entry.config(**fields).build()([answer], [list(right)])
    return value


@pytest.mark.parametrize(("answer", "right", "forgiving", "strict"), [
    ("cat", ["cat"], 1, 1), (" The  Cat.", ["the cat"], 1, 0), ("cats", ["cat"], 0, 0), ("b", ["a", "b"], 1, 1),
])  # fmt: skip
def test_exact(answer: str, right: list[str], forgiving: float, strict: float) -> None:
    assert score("exact", answer, *right) == forgiving
    assert score("exact", answer, *right, strict=True) == strict


@pytest.mark.parametrize(("answer", "right", "is_right"), [
    ("105", "100", True), ("95", "100", True), ("105.1", "100", False), ("94.9", "100", False), ("-97", "-100", True),
    ("1,040", "1000", True), ("12.4%", "12%", True), ("0.12", "12%", True), ("12", "12%", False),
    ("0.01", "0", False), ("0", "0", True), ("Blue", "blue", True), ("blues", "blue", False), ("nan", "nan", True),
    ("three", "3", False),
])  # fmt: skip
def test_numbers_may_be_five_per_cent_off(answer: str, right: str, is_right: bool) -> None:
    assert score("relaxed", answer, right) == is_right


def test_letters_apart() -> None:
    """Levenshtein's textbook pairs."""
    assert [distance(*pair.split()) for pair in ("kitten sitting", "saturday sunday", "flaw lawn", "same same")] == [
        3, 3, 2, 0]  # fmt: skip
    assert distance("", "abc") == 3


def test_anls() -> None:
    assert score("anls", "coca-cola", "Coca Cola") == pytest.approx(1 - 1 / 9)
    assert score("anls", "kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert score("anls", "ab", "ac") == 0  # half of it is wrong, and half is too much
    assert score("anls", "kitten", "dog", "kitten") == 1
    entry = registry.find("metric", "anls")
    assert entry.config().build()(["x", "coca-cola"], [["y"], ["coca cola"]]) == pytest.approx(4 / 9)


@pytest.mark.parametrize(("people", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_vqa_accuracy_by_how_many_say_so(people: int, worth: float) -> None:
    """VQA: min(#/3, 1), averaged over all ten sets of nine people."""
    others = [f"other {n}" for n in range(10 - people)]
    assert score("vqa", "cat", *["cat"] * people, *others) == pytest.approx(worth)


@pytest.mark.parametrize(("said", "written"), [
    ("The two dogs.", "2 dogs"), ("none", "0"), ("dont", "don't"), ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"), ("red/blue", "red blue"), ("red / blue", "red blue"), ("1,000 men", "1000 men"),
    ("3.5", "3.5"), ("at 3.", "at 3"), ("what?", "what"), ("it's", "it's"), ("an apple, a pear", "apple pear"),
])  # fmt: skip
def test_vqa_spelling(said: str, written: str) -> None:
    assert spelled(said) == written


def test_where_all_say_the_same_only_that_text_is_right() -> None:
    assert score("vqa", "2", *["two"] * 10) == 0
    assert score("vqa", "2", *["two"] * 9, "three") == 1


def test_vqa_needs_people() -> None:
    with pytest.raises(DataError, match="1 answers of people"):
        score("vqa", "cat", "cat")
