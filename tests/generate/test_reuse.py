"""What is in the cache already is not computed again, and the answers are the same."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from small import Talk, clip, picture
from speaking import Reader, Speaker, user
from test_requests import Lengths, asked, run

import vlmkit
from vlmkit.cli.main import main
from vlmkit.generate import Engine, generate
from vlmkit.model.features import FeatureCache

LONG = "It was a bright cold day in April, and the clocks were striking thirteen."
A, B = picture(48, 64, 1), picture(48, 64, 2)


@pytest.fixture
def model() -> Speaker:
    return Speaker().eval()


def ids(model: Any, processor: Any, conversation: Any, count: int = 10) -> list[int]:
    return generate(model, processor, conversation, max_new_tokens=count, details=True, ignore_eos=True).ids


@pytest.mark.parametrize("name", ["next-video", "onevision"])
def test_the_next_turn_reads_only_what_is_new(name: str) -> None:
    model, processor = small.model(name), small.processor(name)
    engine = Engine(model, processor, rows=1)
    talk, known = Talk(("See <image>\nand <video>\n?",), (A, clip(3))).messages, 0
    for turn in range(3):
        looks: list[int] = []
        hook = model.tower.register_forward_hook(lambda *_, looks=looks: looks.append(1))
        request = engine.submit(talk, asked(6, ignore_eos=True))
        with Lengths(model) as calls:
            run(engine)
        hook.remove()
        prompt = len(request.prompt.ids)
        assert calls[0] == prompt - request.reused
        assert known <= request.reused < prompt
        assert len(looks) == (0 if turn else 2)  # once for the picture, once for the clip
        assert request.ids == ids(model, processor, talk, 6)
        known = prompt
        talk = [*talk, {"role": "assistant", "content": request.writer.text}, {"role": "user", "content": "And?"}]


def test_a_shared_beginning_is_computed_once(model: Speaker) -> None:
    """Whether the row it lies in is free or busy."""
    questions = [LONG + more for more in ("", " Why?", " Why not?", " Who was it that came?")]
    wanted = [ids(model, Reader(), user(q)) for q in questions]
    engine = Engine(model, Reader(), rows=4)
    first = engine.submit(user(questions[0]), asked(10))
    engine.step()
    others = [engine.submit(user(q), asked(10)) for q in questions[1:]]
    with Lengths(model) as calls:
        run(engine)
    assert calls[0] == 1 + sum(len(q) - len(LONG) for q in questions[1:])
    assert [r.reused for r in others] == [len(LONG)] * 3
    assert [r.ids for r in (first, *others)] == wanted
    again = engine.submit(user(questions[2]), asked(10))
    run(engine)
    assert again.reused == len(questions[2]) - 1  # one is left to compute
    assert again.ids == wanted[2]


def test_a_row_that_holds_much_more_is_copied(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=2)
    long, short = user(LONG + "x" * 200), user(LONG[:20] + "?")
    for conversation, reused in ((long, 0), (short, 20), (long, len(LONG) + 199)):
        request = engine.submit(conversation, asked(10))
        run(engine)
        assert request.reused == reused
        assert request.ids == ids(model, Reader(), conversation)


def test_the_row_unused_for_longest_goes_first(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=2)
    reused = []
    for letter in "abacab":
        request = engine.submit(user(letter * 40), asked(2))
        run(engine)
        reused.append(request.reused)
        assert request.ids == ids(model, Reader(), user(letter * 40), 2)
    assert reused == [0, 0, 39, 0, 39, 0]


def test_little_in_common_is_nothing(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=1)
    for text in ("abcdefgh", "abcdefghi"):
        request = engine.submit(user(text), asked(2))
        run(engine)
        assert request.reused == 0


def test_another_picture_is_not_taken_for_the_first() -> None:
    model, processor = small.model("onevision"), small.processor("onevision")
    engine = Engine(model, processor, rows=1)
    for shown, whole in (((A, A), False), ((B, A), False), ((B, A), True), ((B, B), False)):
        talk = Talk(("Here is a picture and this is it: <image> and <image>\nWhat is it?",), shown).messages
        request = engine.submit(talk, asked(8, ignore_eos=True))
        run(engine)
        assert (request.reused == len(request.prompt.ids) - 1) == whole
        assert request.ids == ids(model, processor, talk, 8)
        if shown == (B, B):  # all of the first one is kept
            assert request.reused >= request.prompt.slots[len(request.prompt.slots) // 2 - 1]


@pytest.mark.parametrize("change", ["step", "load", "train", "swap"])
def test_other_weights_compute_anew(model: Speaker, change: str) -> None:
    engine = Engine(model, Reader(), rows=2)
    engine.submit(user(LONG), asked(4))
    run(engine)
    weight = model.decoder.blocks[0].attn.k.weight
    if change == "step":
        weight.grad = torch.randn_like(weight)
        torch.optim.SGD([weight], lr=0.1).step()
    elif change == "load":
        model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})
    elif change == "train":
        model.train()
    else:
        model.decoder.blocks[0].attn.k.weight = torch.nn.Parameter(weight * 2)
    request = engine.submit(user(LONG), asked(4))
    run(engine)
    assert request.reused == 0
    assert request.ids == ids(model, Reader(), user(LONG), 4)
    if change == "train":
        model.eval()
    again = engine.submit(user(LONG), asked(4))
    run(engine)
    assert again.reused == len(LONG) - 1


def test_an_answer_given_up_leaves_what_it_read(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=1, prefill=30)
    request = engine.submit(user(LONG), asked(4))
    engine.step()
    request.cancel()
    again = engine.submit(user(LONG), asked(4))
    run(engine)
    assert again.reused == 30
    assert again.ids == ids(model, Reader(), user(LONG), 4)


def test_nothing_is_reused_when_it_is_off(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=1, reuse=False)
    for _ in range(2):
        request = engine.submit(user(LONG), asked(2))
        run(engine)
        assert request.reused == 0


def test_a_second_question_about_a_picture_runs_no_tower() -> None:
    """Other words before it, so that no row can be gone on from."""
    model, processor = small.model("onevision"), small.processor("onevision")
    cache, looks = FeatureCache(), []
    talks = [Talk((text,), (A,)).messages for text in ("<image>\nWhat?", "Tell me of <image>\n, please")]
    wanted = [ids(model, processor, talk, 6) for talk in talks]
    hook = model.tower.register_forward_hook(lambda *_: looks.append(1))
    engine = Engine(model, processor, features=cache)
    requests = []
    for talk in talks:
        requests.append(engine.submit(talk, asked(6, ignore_eos=True)))
        run(engine)
    assert len(looks) == 1
    for talk in talks:
        assert generate(model, processor, talk, max_new_tokens=6, details=True, ignore_eos=True, features=cache).ids
    hook.remove()
    assert len(looks) == 1
    assert [r.ids for r in requests] == wanted
    assert (cache.hits, cache.misses) == (3, 1)


def test_a_chat_reads_each_word_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what `generate` would, turn by turn."""
    model, processor = vlmkit.load("tiny")
    questions = ["What color is the star?", "What shape is the red object?", "How many objects are there?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions)))
    monkeypatch.setattr(importlib.import_module("vlmkit.cli.chat"), "load", lambda *_: (model, processor))
    shown = Path(__file__).parents[2] / "examples" / "media" / "shapes.png"
    with Lengths(model) as calls:
        assert main(["chat", "tiny", "--image", str(shown)]) == 0
    talk: list[dict[str, Any]] = []
    for question, said in zip(questions, capsys.readouterr().out.splitlines(), strict=True):
        content = [{"type": "text", "text": question}]
        talk.append({"role": "user", "content": content if talk else [{"type": "image", "image": shown}, *content]})
        assert generate(model, processor, talk) == said
        talk.append({"role": "assistant", "content": said})
    read = [length for length in calls if length > 1]
    assert len(read) == 3
    whole = len(processor(talk[:-1]).ids)
    assert sum(calls) <= whole + 20  # beside the last answer, a token or two of each turn
