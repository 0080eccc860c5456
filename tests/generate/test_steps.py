"""Compiled steps of fixed shapes give what the others give, and stand back where somebody put in their own."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from speaking import PROMPTS, Reader, Speaker, user
from torch import nn

from vlmkit.generate import Engine, Options, generate
from vlmkit.generate import steps as steps_module
from vlmkit.parts.attention import eager

MANY = [user(text) for text in PROMPTS]


@pytest.mark.parametrize("window", [None, 6])
def test_a_step_of_fixed_shapes_gives_the_logits_of_a_forward(window: int | None) -> None:
    decoder = Speaker(window=window).decoder
    prompt, lens, new = torch.arange(30), torch.tensor([12, 0, 18]), torch.tensor([7, 3])
    given, own = decoder.cache(3, 24), decoder.cache(3, 24)
    with torch.inference_mode():
        for cache in (given, own):
            decoder(decoder.embed(prompt), lens, cache)
        own[0].k[1] = 5.0  # a resting row keeps what it holds
        wanted = decoder.logits(decoder(decoder.embed(new), torch.tensor([1, 0, 1]), given))
        step = decoder.fixed()
        assert step is not None
        numbers = torch.tensor([[7, 0, 3], [12, 23, 18], [1, 0, 1]])
        found = step(numbers, [layer.k for layer in own], [layer.v for layer in own])[[0, 2]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (own[0].k[1] == 5.0).all()
    for row, at in ((0, 12), (2, 18)):
        for mine, theirs in zip(own, given, strict=True):
            torch.testing.assert_close(mine.k[row, at], theirs.k[row, at], rtol=0, atol=1e-6)
            torch.testing.assert_close(mine.v[row, at], theirs.v[row, at], rtol=0, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
def test_compiled_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come, leave and rest; their cache grows over a border of buckets."""
    monkeypatch.setattr(steps_module, "BUCKET", 32)
    model, reader = Speaker(), Reader()
    asked = [0]
    engine = Engine(model, reader, rows=3, compile=True)
    assert engine.steps is not None
    run = engine.steps._run
    monkeypatch.setattr(engine.steps, "_run", lambda *given: (asked.append(given[1]), run(*given))[1])
    requests = [engine.submit(talk, Options(max_new_tokens=5 + 6 * at)) for at, talk in enumerate(MANY)]
    while engine.busy:
        engine.step()
    for at, (request, talk) in enumerate(zip(requests, MANY, strict=True)):
        assert request.ids == generate(model, reader, talk, max_new_tokens=5 + 6 * at, details=True).ids
    assert len(set(asked)) > 2  # compiled steps were taken, over several buckets


def test_who_changes_the_model_gets_other_steps() -> None:
    decoder = Speaker().decoder
    first = decoder.fixed()
    assert first is not None
    assert decoder.fixed() is first
    assert copy.deepcopy(decoder).fixed() is not first
    hook = decoder.blocks[0].mlp.register_forward_hook(lambda *_: None)
    assert decoder.fixed() is None
    hook.remove()
    decoder.to(torch.float64)
    second = decoder.fixed()
    assert second is not None
    assert second is not first
    decoder.blocks[0].mlp.up = nn.Sequential(decoder.blocks[0].mlp.up)
    assert decoder.fixed() is None
    assert Speaker(eager).decoder.fixed() is None
    assert Speaker(rope={"type": "dynamic", "factor": 2}).decoder.fixed() is None


def test_without_such_a_step_all_goes_on_as_it_did() -> None:
    model, reader = Speaker(eager), Reader()
    found = generate(model, reader, MANY, max_new_tokens=6, compile=True, details=True)
    assert [g.ids for g in found] == [g.ids for g in generate(model, reader, MANY, max_new_tokens=6, details=True)]
