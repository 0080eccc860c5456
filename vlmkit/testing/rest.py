"""Checks for what a model is fed with and measured by: dataset, metric, checkpoint format."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..errors import VlmkitError
from .outcomes import Skipped, promise, want

ROLES = ("system", "user", "assistant")
PEOPLE = 10  # who were asked one question


def _made(case: Any) -> Any:
    try:
        return case.make()
    except VlmkitError as why:
        raise Skipped(f"EXAMPLE does not build here: {why.what}") from None


@promise("dataset")
def gives_conversations(case: Any) -> None:
    """It has a length, and each item is a conversation as `processor` takes it, with an answer to learn."""
    data = _made(case)
    want(len(data) > 0, "there is nothing in it")
    for i in range(min(len(data), 8)):
        messages = data[i]
        want(isinstance(messages, list) and messages, f"item {i} is {type(messages).__name__}, not a list of messages")
        for message in messages:
            want(isinstance(message, dict) and message.get("role") in ROLES and "content" in message,
                 f"item {i}: a message has a role of {', '.join(ROLES)} and content")
        want(any(m["role"] == "assistant" for m in messages), f"item {i} has no answer")


@promise("dataset")
def gives_the_same_item(case: Any) -> None:
    """Item i is item i whenever and wherever it is asked for: resuming and workers depend on it."""
    one, two = _made(case), _made(case)
    for i in reversed(range(min(len(one), 4))):
        first = repr(_words(two[i]))
        want(repr(_words(one[i])) == first == repr(_words(one[i])), f"item {i} is another one the second time")


def _words(messages: list[Any]) -> list[Any]:
    """Roles and texts; pictures are told by their bytes."""
    told: list[Any] = []
    for message in messages:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            told.append((message["role"], [(k, v.tobytes() if hasattr(v, "tobytes") else str(v)[:200])
                                           for k, v in part.items() if not isinstance(v, list)]))
    return told


@promise("dataset")
def ends(case: Any) -> None:
    """Beyond its length there is an IndexError, so a plain `for` ends."""
    data = _made(case)
    try:
        data[len(data)]
    except IndexError:
        return
    want(False, f"item {len(data)} of {len(data)} is there")


@promise("metric")
def likes_what_is_right(case: Any) -> None:
    """The right answers score better than wrong ones, the same each time, as a plain finite number."""
    metric = _made(case)
    right, wrong = ["a red cat", "3", "yes"], ["zzz", "qqq", "xxx"]
    people = [[answer] * PEOPLE for answer in right]
    good, bad = metric(right, people), metric(wrong, people)
    want(all(isinstance(s, float) and s == s and abs(s) != float("inf") for s in (good, bad)),
         f"a float, got {good!r} and {bad!r}")
    want(good > bad, f"right answers score {good}, wrong ones {bad}")
    want(metric(right, people) == good, "it scores otherwise the second time")


@promise("format")
def knows_its_own(case: Any) -> None:
    """It recognises no folder that is empty or holds nonsense, and says so without failing."""
    made = case.make()
    for text in (None, "{}", '{"model_type": 7}', '{"architectures": "x", "model_type": null}'):
        with tempfile.TemporaryDirectory() as place:
            if text is not None:
                Path(place, "config.json").write_text(text, encoding="utf-8")
            want(made.recognise(Path(place)) is False, f"a folder with config.json {text} is taken for its own")


@promise("format")
def has_both_ways(case: Any) -> None:
    """It describes folders, gives rules for names, and dresses exports."""
    made = case.make()
    lost = [name for name in ("recognise", "describe", "rules", "dress") if not callable(getattr(made, name, None))]
    want(not lost, f"without {', '.join(lost)}")
