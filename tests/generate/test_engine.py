"""Many requests in one row give what each would give alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from speaking import PROMPTS, Reader, Speaker, user
from torch import nn

from vlmkit.errors import ContextLengthError, PromptError
from vlmkit.generate import Engine, Options, generate, stream
from vlmkit.generate import rows as rows_module
from vlmkit.parts.attention import eager, sdpa

CHANCE = {"temperature": 1.3, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "seed": 3}
MANY = [user(text) for text in PROMPTS]


@pytest.fixture(scope="module")
def model() -> Speaker:
    return Speaker()


@pytest.fixture
def reader() -> Reader:
    return Reader()


def plainly(model: Speaker, ids: list[int], count: int) -> list[int]:
    """Greedy decoding with no engine and no cache: the whole sequence again for each token."""
    found: list[int] = []
    with torch.no_grad():
        while len(found) < count:
            x = torch.tensor(ids + found)
            hidden = model.decoder(model.decoder.embed(x), torch.tensor([len(x)]))
            found.append(int(model.decoder.logits(hidden[-1:])[0, :257].argmax()))
    return found


@pytest.mark.parametrize("backend", [eager, sdpa], ids=["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{"window": 6}, {"rope": {"type": "dynamic", "factor": 2, "original": 45}}], ids=str)
@pytest.mark.parametrize("how", [{}, CHANCE], ids=["greedy", "sampled"])
def test_a_batch_is_one_by_one(backend: Any, fields: dict[str, Any], how: dict[str, Any], reader: Reader) -> None:
    model = Speaker(backend, **fields)
    alone = [generate(model, reader, c, max_new_tokens=14, details=True, **how) for c in MANY]
    for rows in (8, 3):
        together = generate(model, reader, MANY, max_new_tokens=14, details=True, rows=rows, **how)
        for mine, yours in zip(together, alone, strict=True):
            assert mine.ids == yours.ids
            assert mine.text == yours.text
            assert mine.logprobs == pytest.approx(yours.logprobs, abs=1e-5)
    assert len({tuple(g.ids) for g in alone}) == len(MANY)


def test_the_engine_adds_nothing(model: Speaker, reader: Reader) -> None:
    for text, got in zip(PROMPTS, generate(model, reader, MANY, max_new_tokens=16, details=True), strict=True):
        ids = reader.tokenizer.raw.encode(text, add_special_tokens=False).ids
        assert got.ids == plainly(model, ids, 16)
        assert (got.prompt_tokens, got.visual_tokens, got.finish) == (len(ids), 0, "length")
        assert got.text == reader.tokenizer.decode(got.ids)


def test_requests_join_and_leave_while_others_run(model: Speaker, reader: Reader) -> None:
    engine, wanted, got = Engine(model, reader, rows=2, prefill=40), {}, {}
    waiting = list(enumerate(MANY[:5]))
    for index, conversation in waiting:
        wanted[index] = generate(model, reader, conversation, max_new_tokens=3 + 4 * index)
    while waiting or engine.running:
        if waiting and engine.open:
            index, conversation = waiting.pop(0)
            got[index] = engine.submit(conversation, options(3 + 4 * index))
        engine.step()
    assert {i: r.writer.text for i, r in got.items()} == wanted
    assert len(engine.rows.rows) == 2


def test_an_idle_engine_and_a_full_one(model: Speaker, reader: Reader) -> None:
    engine = Engine(model, reader, rows=1)
    assert engine.step() == []
    first, second = engine.submit(user("a"), options(2)), engine.submit(user("b"), options(2))
    assert not engine.open
    assert [engine.step(), engine.step(), engine.step()] == [[first], [first], [second]]


def options(count: int) -> Options:
    return Options(max_new_tokens=count)


def test_only_the_last_position_gets_logits(model: Speaker, reader: Reader) -> None:
    model.rows_of_logits.clear()
    generate(model, reader, MANY, max_new_tokens=3)
    assert model.rows_of_logits == [8, 8, 8]


def test_a_long_answer_outgrows_its_cache(model: Speaker, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = generate(model, reader, MANY[:3], max_new_tokens=60, details=True)
    monkeypatch.setattr(rows_module, "FIRST", 7)
    got = generate(model, reader, MANY[:3], max_new_tokens=60, details=True)
    assert [g.ids for g in got] == [g.ids for g in wanted]


def test_spare_rows_of_the_vocabulary_are_never_said(reader: Reader) -> None:
    model = Speaker()
    with torch.no_grad():
        model.decoder.head.weight[257:] *= 100  # the tokenizer knows 257 ids
    for how in ({}, {"temperature": 2.0, "seed": 1}, {"temperature": 2.0, "top_k": 3, "seed": 1}):
        for answer in generate(model, reader, MANY, max_new_tokens=12, details=True, **how):
            assert max(answer.ids) < reader.tokenizer.size == 257


def test_what_a_request_leaves_behind_is_wiped(model: Speaker, reader: Reader) -> None:
    engine = Engine(model, reader, rows=2)
    first, second = engine.submit(user("broken"), options(9)), engine.submit(user("b" * 30), options(9))
    engine.step()
    with torch.inference_mode():
        for layer in engine.rows.cache:  # an overflow in half precision looks like this
            layer.k[first.row, :6] = torch.nan
            layer.v[first.row, :6] = torch.inf
    row = first.row
    first.cancel()
    engine.step()
    short = engine.submit(user("a"), options(9))
    engine.step()
    assert (short.row, second.finish) == (row, None)
    while engine.busy:
        engine.step()
    assert short.ids == generate(model, reader, user("a"), max_new_tokens=9, details=True).ids
    assert second.ids == generate(model, reader, user("b" * 30), max_new_tokens=9, details=True).ids


def test_stop_ids(model: Speaker, reader: Reader) -> None:
    free = generate(model, reader, MANY[1], max_new_tokens=12, details=True)
    end = free.ids[5]
    first = free.ids.index(end) + 1
    stopped = generate(model, Reader(stop_ids=(end,)), MANY[1], max_new_tokens=12, details=True)
    assert (stopped.ids, stopped.finish) == (free.ids[:first], "stop")  # the one that ends it is counted, not shown
    assert stopped.text == reader.tokenizer.decode(free.ids[: first - 1])
    assert len(stopped.logprobs) == first
    on = generate(model, Reader(stop_ids=(end,)), MANY[1], max_new_tokens=12, details=True, ignore_eos=True)
    assert (on.ids, on.finish) == (free.ids, "length")


def test_stop_strings(model: Speaker, reader: Reader) -> None:
    free = generate(model, reader, MANY[1], max_new_tokens=40)
    stop = free[10:13]
    wanted = free[: free.find(stop)]
    for given in (stop, [stop, "never said"]):
        answer = generate(model, reader, MANY[1], max_new_tokens=40, stop=given, details=True)
        assert (answer.text, answer.finish) == (wanted, "stop")
    own = Reader(stop_strings=(stop,))
    assert generate(model, own, MANY[1], max_new_tokens=40) == wanted
    assert generate(model, own, MANY[1], max_new_tokens=40, ignore_eos=True) == free
    assert "".join(stream(model, own, MANY[1], max_new_tokens=40)) == wanted


def test_the_context_is_the_end(reader: Reader) -> None:
    model = Speaker(context=20)
    answer = generate(model, reader, user("x" * 15), max_new_tokens=50, details=True)
    assert (len(answer.ids), answer.finish) == (5, "length")
    with pytest.raises(ContextLengthError, match="20 tokens, 0 of them visual; the decoder reads 20"):
        generate(model, reader, user("x" * 20))


def test_a_stream_is_the_same_text_in_pieces(model: Speaker, reader: Reader) -> None:
    for conversation in MANY[:3]:
        pieces = list(stream(model, reader, conversation, max_new_tokens=30))
        assert len(pieces) > 5
        assert all(pieces)
        assert "".join(pieces) == generate(model, reader, conversation, max_new_tokens=30)


def test_a_stream_starts_before_it_ends(model: Speaker, reader: Reader) -> None:
    model.rows_of_logits.clear()
    pieces = stream(model, reader, MANY[0], max_new_tokens=200)
    assert isinstance(pieces, Iterator)
    next(pieces)
    assert len(model.rows_of_logits) < 20


def test_one_gives_one_and_many_give_many(model: Speaker, reader: Reader) -> None:
    text = generate(model, reader, "a", max_new_tokens=4)
    assert isinstance(text, str)
    assert generate(model, reader, user("a"), max_new_tokens=4) == text
    assert generate(model, reader, [user("a")], max_new_tokens=4) == [text]
    assert generate(model, reader, ["a", user("a")], max_new_tokens=4) == [text, text]
    assert generate(model, reader, []) == []


def test_a_prompt_takes_its_media_along(model: Speaker, reader: Reader) -> None:
    generate(model, reader, "what?", images=["a.png", "b.png"], videos="c.mp4", max_new_tokens=1)
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "b.png"},
        {"type": "video", "video": "c.mp4"},
        {"type": "text", "text": "what?"},
    ]
    assert reader.asked == [[{"role": "user", "content": parts}]]
    with pytest.raises(PromptError, match="content parts"):
        generate(model, reader, MANY[0], images=["a.png"])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"max_new_tokens": 0}, "max_new_tokens"), ({"max_new_tokens": "9"}, "max_new_tokens"), ({"stop": ""}, "stop"),
     ({"stop": 5}, "stop"), ({"stop": [5]}, "stop"), ({"top_p": 0.0}, "top_p")],
)
def test_a_wrong_wish_is_named(model: Speaker, reader: Reader, wrong: dict[str, Any], text: str) -> None:
    for ask in (generate, stream):
        with pytest.raises(PromptError, match=text):
            ask(model, reader, MANY[0], **wrong)
    assert not reader.asked  # before anything is read
    with pytest.raises(PromptError, match="one conversation"):
        stream(model, reader, MANY)
    with pytest.raises(PromptError, match="rows"):
        generate(model, reader, MANY, rows=0)
    with pytest.raises(TypeError, match="temprature"):
        generate(model, reader, MANY, temprature=0.5)  # type: ignore[call-arg]


def test_an_empty_prompt_is_refused(model: Speaker, reader: Reader) -> None:
    with pytest.raises(PromptError, match="words in it"):
        generate(model, reader, ["a", ""])


def test_learning_goes_on_after_an_answer(model: Speaker, reader: Reader) -> None:
    generate(model, reader, MANY[:2], max_new_tokens=2)
    batch = reader([MANY[1]])
    model.logits(model(batch)).sum().backward()
    assert model.decoder.embed.weight.grad is not None
    model.zero_grad(set_to_none=True)


def test_a_model_in_training_answers_as_it_will(reader: Reader) -> None:
    """Dropout and batch statistics rest while it speaks; afterwards every module is as it was."""
    model = Speaker().eval()
    wanted = generate(model, reader, MANY[:3], max_new_tokens=8)
    model.decoder.norm = nn.Sequential(model.decoder.norm, nn.Dropout(0.5), norm := nn.BatchNorm1d(32))
    model.train()
    model.decoder.embed.eval()
    assert generate(model, reader, MANY[:3], max_new_tokens=8) == wanted
    assert torch.equal(norm.running_mean, torch.zeros(32))
    assert [name for name, m in model.named_modules() if not m.training] == ["decoder.embed"]
