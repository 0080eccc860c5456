"""Layers: mappings merge, lists and scalars replace, null removes, another `use` clears."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from vlmkit.compose.merge import is_word, lay, read_word, set_words
from vlmkit.compose.nodes import Node, parse, plain
from vlmkit.errors import OverrideError


def tree(text: str, source: str = "a.yaml") -> Node:
    return parse(text, source)


@pytest.mark.parametrize(("below", "above", "wanted"), [
    ("a: {b: 1, c: 2}", "a: {c: 3, d: 4}", {"a": {"b": 1, "c": 3, "d": 4}}),
    ("a: [1, 2]", "a: [3]", {"a": [3]}),
    ("a: 1", "a: {x: 1}", {"a": {"x": 1}}),
    ("a: {x: 1}", "a: null", {}),
    ("a: {b: {x: 1}, c: 1}", "a: {b: null}", {"a": {"c": 1}}),
    ("a: {x: 1}", "a: {x: null}", {"a": {"x": None}}),  # a field may be null; only sections go
    ("p: {use: mlp, depth: 2}", "p: {use: resampler}", {"p": {"use": "resampler"}}),
    ("p: {use: mlp, depth: 2}", "p: {use: mlp, act: silu}", {"p": {"use": "mlp", "depth": 2, "act": "silu"}}),
    ("p: {use: mlp, depth: 2}", "p: {depth: 3}", {"p": {"use": "mlp", "depth": 3}}),
    ("p: {use: mlp, depth: 2}", "p: resampler", {"p": {"use": "resampler"}}),
    ("p: {use: mlp, depth: 2}", "p: mlp", {"p": {"use": "mlp", "depth": 2}}),
    ("p: flat", "p: {newline: end}", {"p": {"use": "flat", "newline": "end"}}),
    ("p: flat", "p: {use: anyres, unpad: true}", {"p": {"use": "anyres", "unpad": True}}),
    ("p: flat", "p: anyres", {"p": "anyres"}),
    ("v: {tower: {use: timm, model: x}}", "v: {tower: {use: fused, towers: []}}",
     {"v": {"tower": {"use": "fused", "towers": []}}}),
])  # fmt: skip
def test_one_layer_over_another(below: str, above: str, wanted: Any) -> None:
    assert plain(lay(tree(below), tree(above))) == wanted


def test_each_value_remembers_its_layer() -> None:
    both = lay(tree("p: {use: mlp,\n  depth: 2}\nq: 1", "low.yaml"), tree("\np:\n  depth: 3", "high.yaml"))
    assert both.value["p"].value["depth"].place == "high.yaml:3"
    assert both.value["p"].value["use"].place == "low.yaml:1"
    assert both.value["q"].place == "low.yaml:3"


@pytest.mark.parametrize(("words", "wanted"), [
    (["p=resampler"], {"p": {"use": "resampler"}, "l": [{"a": 1}, 2]}),
    (["p.depth=3", "p.act=gelu"], {"p": {"use": "mlp", "depth": 3, "act": "gelu"}, "l": [{"a": 1}, 2]}),
    (["p=resampler", "p.queries=4"], {"p": {"use": "resampler", "queries": 4}, "l": [{"a": 1}, 2]}),
    (["p={use: mlp, act: silu}"], {"p": {"use": "mlp", "depth": 2, "act": "silu"}, "l": [{"a": 1}, 2]}),
    (["l[0].a=5"], {"p": {"use": "mlp", "depth": 2}, "l": [{"a": 5}, 2]}),
    (["l[1]=[7, 8]"], {"p": {"use": "mlp", "depth": 2}, "l": [{"a": 1}, [7, 8]]}),
    (["p=null"], {"l": [{"a": 1}, 2]}),
    (["l=0", "new.deep='a b'"], {"p": {"use": "mlp", "depth": 2}, "l": 0, "new": {"deep": "a b"}}),
    (["a=b=c"], {"p": {"use": "mlp", "depth": 2}, "l": [{"a": 1}, 2], "a": "b=c"}),
])  # fmt: skip
def test_words(words: list[str], wanted: Any) -> None:
    assert plain(set_words(tree("p: {use: mlp, depth: 2}\nl: [{a: 1}, 2]"), words)) == wanted


def test_what_is_a_word() -> None:
    assert is_word("a=b")
    assert is_word("=b")  # and will be refused as one
    assert not any(map(is_word, ("runs/instruct", "./a=b.yaml", "/a=b/c.yaml")))


KEYS = some.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
VALUES = some.recursive(
    some.booleans() | some.integers(-10**9, 10**9) | some.floats(-1e9, 1e9).map(lambda x: round(x, 3)),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(KEYS.map("k{}".format), inner, max_size=3),
    max_leaves=6,
)


@given(some.lists(KEYS.filter(lambda key: not key.startswith("_")), min_size=1, max_size=4), VALUES)
def test_every_word_of_the_grammar_reads_back(keys: list[str], value: Any) -> None:
    import json

    word = read_word(f"{'.'.join(keys)}={json.dumps(value)}")
    assert word.path == tuple(keys)
    assert plain(word.node) == value


@given(some.text(max_size=40))
def test_any_text_is_a_word_or_one_error(text: str) -> None:
    with suppress(OverrideError):
        set_words(Node({}, "a.yaml"), [text])
