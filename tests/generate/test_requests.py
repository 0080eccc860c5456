"""Requests come, wait, fail and leave while others speak, and nobody's answer changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import small
import torch
from small import Talk, clip, picture
from speaking import Reader, Speaker, user
from torch import Tensor

from vlmkit.errors import ContextLengthError, ShapeError, VlmkitError
from vlmkit.generate import Engine, Options, Request, Sampling, generate

TEXTS = ["a", "The cat sat on the mat.", "x" * 70, "two words", "1234567890" * 9]
EYED = ["next-video", "onevision"]


@pytest.fixture(scope="module")
def model() -> Speaker:
    return Speaker()


@pytest.fixture(scope="module")
def alone(model: Speaker) -> list[list[int]]:
    return [generate(model, Reader(), user(text), max_new_tokens=20, details=True).ids for text in TEXTS]


def asked(count: int = 20, **more: Any) -> Options:
    return Options(max_new_tokens=count, **more)


def run(engine: Engine) -> None:
    for _ in range(2000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("it never ends")


class Lengths:
    """How many tokens each call of a decoder computes."""

    def __init__(self, model: Any) -> None:
        self.calls: list[int] = []
        self.hook = model.decoder.register_forward_pre_hook(lambda _, given: self.calls.append(len(given[0])))

    def __enter__(self) -> list[int]:
        return self.calls

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def logits_of(model: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    kept: list[Tensor] = []
    plain = type(model).logits
    monkeypatch.setattr(model, "logits", lambda hidden: kept.append(plain(model, hidden)) or kept[-1], raising=False)
    run(engine)
    monkeypatch.undo()
    return kept


@pytest.mark.parametrize("name", EYED)
@pytest.mark.parametrize("prefill", [1, 7, 50])
def test_a_long_prompt_in_pieces(name: str, prefill: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits and words as in one piece; the tower sees each picture once."""
    model, processor = small.model(name), small.processor(name)
    talk = Talk(("See <image>\nand then <video>\n, then say.",), (picture(48, 64, 1), clip(3))).messages
    kept, looks = [], []
    hook = model.tower.register_forward_hook(lambda *_: looks.append(1))
    for size in (2048, prefill):
        engine = Engine(model, processor, prefill=size)
        request = engine.submit(talk, asked(8, ignore_eos=True))
        with Lengths(model) as lengths:
            kept.append(logits_of(model, engine, monkeypatch))
        assert max(lengths) == min(size, len(request.prompt.ids))
        kept[-1].append(torch.tensor(request.ids))
    hook.remove()
    assert sum(looks) == 4  # two kinds, two engines
    for whole, pieces in zip(*kept, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


def test_others_speak_while_a_prompt_is_read(model: Speaker, alone: list[list[int]]) -> None:
    engine = Engine(model, Reader(), rows=3, prefill=8)
    first = engine.submit(user(TEXTS[0]), asked())
    engine.step()
    long, also = engine.submit(user(TEXTS[2]), asked()), engine.submit(user(TEXTS[4]), asked())
    while not long.ids:
        said = len(first.ids)
        with Lengths(model) as calls:
            engine.step()
        assert len(first.ids) == said + 1
        assert max(calls) <= 9
        assert not also.ids  # they read in turn
    run(engine)
    assert [first.ids, long.ids, also.ids] == [alone[0], alone[2], alone[4]]


def test_positions_that_stretch_are_read_at_once() -> None:
    model = Speaker(rope={"type": "dynamic", "factor": 2, "original": 45})
    engine = Engine(model, Reader(), prefill=16)
    first, second = engine.submit(user("y" * 60), asked(4)), engine.submit(user("y" * 60 + "z"), asked(4))
    with Lengths(model) as calls:
        run(engine)
    assert calls[:2] == [60, 62]
    assert first.ids == generate(model, Reader(), user("y" * 60), max_new_tokens=4, details=True).ids
    assert (second.reused, len(second.ids)) == (0, 4)


def test_a_cancelled_request_leaves_at_the_next_step(model: Speaker, alone: list[list[int]]) -> None:
    engine = Engine(model, Reader(), rows=2)
    first, second, waits = (engine.submit(user(text), asked()) for text in TEXTS[:3])
    for _ in range(5):
        engine.step()
    first.cancel()
    waits.cancel()
    assert {first, waits, second} == set(engine.step())
    assert (first.finish, waits.finish) == ("cancelled", "cancelled")
    assert (first.generation().ids, waits.generation().ids) == (alone[0][:5], [])
    assert first.generation().text == Reader().tokenizer.decode(alone[0][:5])
    run(engine)
    assert second.ids == alone[1]


def test_a_deadline_ends_an_answer_with_what_there_is(model: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    engine = Engine(model, Reader(), rows=1)
    request, waits = (engine.submit(user("a"), asked(deadline=5.0)) for _ in range(2))
    engine.step()
    now[0] = 104.9
    engine.step()
    assert request.finish is None
    now[0] = 105.0
    assert engine.step() == [request, waits]
    assert (request.finish, len(request.ids), waits.finish, waits.ids) == ("deadline", 2, "deadline", [])
    monkeypatch.undo()
    assert generate(model, Reader(), "a", deadline=0, details=True).finish == "deadline"
    with pytest.raises(VlmkitError, match="deadline"):
        generate(model, Reader(), "a", deadline=-1)


def size(engine: Engine) -> int:
    return sum(t.nbytes for layer in engine.rows.cache for t in (layer.k, layer.v))


@pytest.mark.parametrize("places", [95, 130, 200, 260, 420])
def test_the_cache_stays_within_its_memory(model: Speaker, alone: list[list[int]], places: int) -> None:
    """Those that do not fit beside the others wait; what no cache of that size could hold is refused."""
    position = sum(t.nbytes for layer in model.decoder.cache(1, 1) for t in (layer.k, layer.v))
    engine = Engine(model, Reader(), rows=4, memory=places * position)
    with pytest.raises(ContextLengthError, match=f"hold {places}") as error:
        engine.submit(user("x" * places))
    assert (error.value.limit, error.value.got) == (places, places)
    requests = [engine.submit(user(text), asked()) for text in TEXTS]
    together = 0
    while engine.busy:
        engine.step()
        assert size(engine) <= engine.rows.memory
        together = max(together, len(engine.running))
    assert together == (4 if places == 420 else 2)
    assert [r.ids for r in requests] == [ids[: places - len(t)] for ids, t in zip(alone, TEXTS, strict=True)]


def test_the_cache_is_no_longer_than_anybody_needs(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=8)
    engine.submit(user("x" * 70), asked(20))
    run(engine)
    assert engine.rows.cache[0].k.shape[:2] == (1, 90)


def test_one_bad_picture_ends_one_request() -> None:
    model, processor = small.model("onevision"), small.processor("onevision")
    good = Talk(("<image>\nWhat?",), (picture(48, 64, 1),)).messages
    wanted = generate(model, processor, good, max_new_tokens=6, details=True).ids
    engine = Engine(model, processor)
    first = engine.submit(good, asked(6))
    broken = processor([good])
    bad = engine.submit(broken._replace(visuals=broken.visuals * 2), asked(6))
    last = engine.submit(good, asked(6))
    run(engine)
    assert first.ids == last.ids == wanted
    assert bad.finish == "error"
    with pytest.raises(ShapeError, match="slots but"):
        bad.generation()
    with pytest.raises(ShapeError):
        list(bad)


def test_what_fails_before_it_is_submitted_touches_nobody(model: Speaker, alone: list[list[int]]) -> None:
    engine = Engine(model, Reader())
    first = engine.submit(user(TEXTS[1]), asked())
    engine.step()
    for wrong in (user(""), user("x" * 600)):
        with pytest.raises(VlmkitError):
            engine.submit(wrong, asked())
    prompt = Reader()([user("abc")])
    for id in (-1, 320):
        with pytest.raises(VlmkitError, match="knows 0 to 319"):
            engine.submit(prompt._replace(ids=torch.tensor([1, id, 2])), asked())
    run(engine)
    assert first.ids == alone[1]


def test_a_failing_draw_ends_one_request(model: Speaker, alone: list[list[int]]) -> None:
    engine = Engine(model, Reader())
    first = engine.submit(user(TEXTS[0]), asked())
    bad = engine.submit(user(TEXTS[1]), asked(sampling=Sampling(temperature=1.0)))
    last = engine.submit(user(TEXTS[2]), asked())
    bad.generator = "no generator"  # type: ignore[assignment]
    run(engine)
    assert [first.ids, last.ids] == [alone[0], alone[2]]
    assert (bad.finish, type(bad.error)) == ("error", TypeError)


def test_a_step_that_runs_out_of_memory_ends_the_newest(model: Speaker, alone: list[list[int]]) -> None:
    def full(_: Any, given: Any) -> None:
        if len(given[0]) > 60:
            raise torch.OutOfMemoryError("no room for so many")

    hook = model.decoder.register_forward_pre_hook(full)
    engine = Engine(model, Reader())
    first, second = (engine.submit(user(text), asked()) for text in TEXTS[:2])
    engine.step()
    large, last = engine.submit(user(TEXTS[2]), asked()), engine.submit(user(TEXTS[3]), asked())
    run(engine)
    hook.remove()
    assert [r.finish for r in (large, last)] == ["error", "error"]  # the newest first, then the one that was too large
    assert [first.ids, second.ids] == alone[:2]
    again = engine.submit(user(TEXTS[2]), asked())
    run(engine)
    assert again.ids == alone[2]


def test_a_step_that_fails_late_is_done_again(model: Speaker, alone: list[list[int]],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, Reader())
    first, second = (engine.submit(user(text), asked()) for text in TEXTS[:2])
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(model, "logits", lambda hidden: hidden @ hidden)
        engine.step()
    assert (second.finish, second.ids) == ("error", alone[1][:3])
    with monkeypatch.context() as broken:
        broken.setattr(model, "logits", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    run(engine)
    assert first.ids == alone[0]


def test_a_cache_that_cannot_grow_ends_the_newest(model: Speaker, alone: list[list[int]]) -> None:
    """The others read again what they know and go on."""
    engine = Engine(model, Reader())
    first = engine.submit(user(TEXTS[1]), asked())
    for _ in range(7):
        engine.step()
    resize, fails = engine.rows._resize, [True]

    def tight(rows: Any, capacity: int) -> None:
        if fails.pop():
            engine.rows.cache[0] = engine.rows.cache[0]._replace(k=torch.empty(0))  # half done
            raise torch.OutOfMemoryError("no room")
        resize(rows, capacity)

    engine.rows._resize = tight  # type: ignore[method-assign]
    large = engine.submit(user(TEXTS[2]), asked())
    run(engine)
    assert large.finish == "error"
    assert first.ids == alone[1]


def test_many_threads_submit_and_one_steps(model: Speaker, alone: list[list[int]]) -> None:
    engine, done = Engine(model, Reader(), rows=3, prefill=20), threading.Event()

    def work() -> None:
        while not done.is_set():
            if engine.wait(0.05):
                engine.step()

    found: dict[tuple[int, int], tuple[str, Request]] = {}

    def ask(who: int) -> None:
        for turn in range(6):
            request = engine.submit(user(TEXTS[(who + turn) % len(TEXTS)]), asked())
            if (who + turn) % 7 == 3:
                request.cancel()
            found[who, turn] = "".join(request), request

    owner = threading.Thread(target=work)
    owner.start()
    askers = [threading.Thread(target=ask, args=(who,)) for who in range(6)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join(60)
    done.set()
    owner.join(10)
    assert len(found) == 36
    for (who, turn), (text, request) in found.items():
        wanted = alone[(who + turn) % len(TEXTS)]
        assert text == request.writer.text
        if request.finish == "cancelled":
            assert request.ids == wanted[: len(request.ids)]
        else:
            assert (request.finish, request.ids) == ("length", wanted)
    assert not engine.busy


def test_who_stops_reading_cancels(model: Speaker) -> None:
    engine = Engine(model, Reader(), rows=1)
    request = engine.submit(user("a"), asked())
    pieces = engine.pieces(request)
    next(pieces)
    pieces.close()
    run(engine)
    assert request.finish == "cancelled"
    assert len(request.ids) < 20
