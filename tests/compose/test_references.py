"""References inside a preset, resolved once on the whole tree."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from vlmkit.compose.nodes import parse
from vlmkit.compose.references import resolve
from vlmkit.errors import PresetError

TEXTS = [
    "a: {b: 1}\nc: ${a.b}",
    "a: {b: x, c: '${.b}'}",
    "a: {b: {c: '${..d}'}, d: 2.5}",
    "a: [1, {b: 2}]\nc: ${a[1].b}\nd: ${a.0}",
    "a: {b: 1, c: '${.b}'}\nd: ${a}",
    "a: x\nb: 'pre-${a}-post-${a}'",
    "a: ${b}\nb: ${c}\nc: [true, null]",
    "a: {b: '${c}'}\nc: {d: '${e}', f: [1, '${e}']}\ne: 7",
]


@pytest.mark.parametrize("text", TEXTS)
def test_means_what_omegaconf_means(text: str) -> None:
    wanted: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert resolve(parse(text, "a.yaml")) == wanted


def test_text_without_references_is_not_touched() -> None:
    assert resolve(parse("a: '???'\nb: $5\nc: '\\d'", "a.yaml")) == {"a": "???", "b": "$5", "c": "\\d"}


@pytest.mark.parametrize(("text", "said"), [
    ("a: {b: 1}\nc: 'x ${a}'", "inside a text"),
    ("a: 1\nb: ${a.c}", "there is no a.c"),
    ("a: [1]\nb: ${a[1]}", r"there is no a\[1\]"),
    ("a: '???'\nb: ${a}", "references"),
    ("a: ${}", "only references"),
    ("a: '${b'", "only references"),
])  # fmt: skip
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(PresetError, match=said):
        resolve(parse(text, "a.yaml"))
