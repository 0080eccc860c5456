"""Batches of a run: the same for any number of workers and ranks, and after any stop; nothing is lost in silence."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmkit import registry
from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError, ResumeError
from vlmkit.train.data import Feed
from vlmkit.types import Batch


class Config(PartConfig):
    """Conversations of growing length; some are bad."""

    count: int = 12
    bad: tuple[int, ...] = ()
    pictures: bool = False
    longest: int = 9


class Talks:
    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        if index in self.config.bad:
            raise DataError("broken on purpose", where=self.place(index))
        question: list[dict[str, Any]] = [{"type": "text", "text": f"number {index}? " + "word " * (index % 5)}]
        if self.config.pictures and index % 3:
            picture = torch.full((32, 40 + 8 * (index % 4), 3), index, dtype=torch.uint8).numpy()
            question.insert(0, {"type": "image", "image": picture})
        return [{"role": "user", "content": question}, {"role": "assistant", "content": str(index)}]

    def place(self, index: int) -> str:
        return f"talks:{index + 1}"


@pytest.fixture(autouse=True)
def talks() -> Any:
    registry.add("dataset", "talks", Config, lambda config: Talks(config))
    yield
    registry._added.pop(("dataset", "talks"))


def spoken(batches: Any, processor: Any) -> list[list[int]]:
    """The numbers of the conversations in each batch, read from its ids."""
    found = []
    for batch in batches:
        texts = [processor.tokenizer.decode(ids.tolist()) for ids in batch.sequences()]
        words = [text[text.index("number") : text.index("?")] for text in texts]
        found.append([int("".join(filter(str.isdigit, word))) for word in words])
    return found


def flat(lists: Any) -> list[int]:
    return [number for some in lists for number in some]


def same(one: Batch, other: Batch) -> bool:
    pixels = all(torch.equal(a.pixels, b.pixels) for a, b in zip(one.visuals, other.visuals, strict=True))
    return pixels and all(map(torch.equal, (one.ids, one.lens, one.slots, one.labels),
                              (other.ids, other.lens, other.slots, other.labels)))


@pytest.fixture
def feeding(prepared: Any) -> Any:
    _, processor, run = prepared()
    fields = Config.model_fields

    def make(*where: Any, rank: int = 0, world: int = 1, out: Path | None = None, **given: Any) -> Feed:
        data = Config(use="talks", **{name: given.pop(name) for name in list(given) if name in fields})
        changed = run.model_copy(update={"data": data, "steps": 8, "batch": 3, "tokens": None, "workers": 0, **given})
        return Feed(changed, processor, *where, rank=rank, world=world, out=out)

    make.processor = processor  # type: ignore[attr-defined]
    return make


HOW = pytest.mark.parametrize("how", [{"batch": 3}, {"tokens": 400, "pictures": True}], ids=["batch", "tokens"])


@HOW
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_after_any_batch_changes_nothing(feeding: Any, how: dict[str, Any], workers: int) -> None:
    """Prefetched batches are neither lost nor repeated; the state went through JSON, as in a saved run."""
    whole = list(feeding(**how, bad=(4,), skip=0.1))
    for stop in (1, 5) if workers else range(1, 8):
        feed = feeding(**how, bad=(4,), skip=0.1, workers=workers)
        before = list(islice(feed, stop))
        rest = feeding(json.loads(json.dumps(feed.state())), **how, bad=(4,), skip=0.1, workers=workers)
        after = list(rest)
        assert len(before) + len(after) == len(whole) == 8
        assert all(map(same, [*before, *after], whole))
        assert [one.number for one in rest.left_out] == [4]


@HOW
def test_each_epoch_holds_every_conversation_once_in_an_order_of_its_own(feeding: Any, how: dict[str, Any]) -> None:
    feed = feeding(**how, steps=12)
    numbers = flat(spoken(feed, feeding.processor))
    epochs = [numbers[at : at + 12] for at in (0, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert list(range(12)) not in epochs
    assert spoken(feeding(**how, seed=1), feeding.processor) != spoken(feeding(**how), feeding.processor)


def test_drawn_scenes_keep_their_order(prepared: Any) -> None:
    """Step s holds scenes s * batch to (s + 1) * batch: what `tiny` was trained on. Data that end begin again."""
    _, processor, run = prepared("data.count=7", "steps=5")
    data = run.data.build()
    for step, batch in enumerate(Feed(run, processor)):
        scenes = [data[i % 7] for i in (2 * step, 2 * step + 1)]
        assert same(batch, processor(scenes, reply=False, labels=True))


def test_a_step_is_full_and_never_over_its_budget(feeding: Any) -> None:
    """The next conversation of the order would not have fitted."""
    batches = list(feeding(tokens=400, pictures=True))
    assert all(len(batch.ids) <= 400 for batch in batches)
    assert all(len(one.ids) + int(two.lens[0]) > 400 for one, two in pairwise(batches))


@HOW
def test_ranks_share_a_step_out(feeding: Any, how: dict[str, Any]) -> None:
    """Together they hold the next conversations of the order, each once; nobody sees more than a picture too many."""
    how = how | {"pictures": True, "steps": 4}
    order = flat(spoken(feeding(**how | {"batch": 1, "tokens": None, "steps": 60}), feeding.processor))
    for world in (2, 3):
        ranks = [list(feeding(**how, rank=rank, world=world)) for rank in range(world)]
        begun = 0
        for some in zip(*ranks, strict=True):
            step = flat(spoken(some, feeding.processor))
            assert sorted(step) == sorted(order[begun : begun + len(step)])
            begun += len(step)
            seen = [len(batch.slots) for batch in some]
            largest = max(len(batch.slots) / max(1, len(batch.visuals)) for batch in some)
            assert max(seen) - min(seen) <= 1.5 * largest
            assert sum(len(batch.ids) for batch in some) <= (how.get("tokens") or 10_000)


def test_a_conversation_that_comes_twice_in_a_step_does_so_on_several_ranks(feeding: Any) -> None:
    """A step that holds all of the data and a part again, as a small set at the turn of an epoch does."""
    size = len(feeding().data)
    two = [feeding(batch=size + 3, steps=1, rank=rank, world=2) for rank in (0, 1)]
    shared = [spoken(feed, feeding.processor) for feed in two]
    alone = spoken(feeding(batch=size + 3, steps=1), feeding.processor)
    assert sorted(flat(flat(shared))) == sorted(flat(alone))
    assert sum(len(feed.held) for feed in two) == size + 3


def test_a_stop_with_two_ranks_goes_on_with_one(feeding: Any) -> None:
    how = {"tokens": 400, "pictures": True}
    feeds = [feeding(**how, rank=rank, world=2) for rank in range(2)]
    before = flat(flat(spoken(islice(feed, 3), feeding.processor) for feed in feeds))
    assert feeds[0].state() == feeds[1].state()
    after = flat(spoken(feeding(feeds[0].state(), **how), feeding.processor))
    order = flat(spoken(feeding(batch=1, pictures=True, steps=len(before + after)), feeding.processor))
    assert sorted(before) == sorted(order[: len(before)])
    assert after == order[len(before) :]


def test_a_rank_without_a_conversation_gets_one_that_teaches_nothing(feeding: Any) -> None:
    batches = [next(iter(feeding(batch=1, rank=rank, world=2))) for rank in range(2)]
    assert (batches[0].labels != -100).any()
    assert batches[1].labels.tolist() == [-100]
    assert batches[1].lens.tolist() == [1]


@HOW
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_ones_are_left_out_and_told(feeding: Any, tmp_path: Path, how: dict[str, Any], workers: int) -> None:
    """Counted once, though they come again in every epoch, and with the place they stand at."""
    feed = feeding(**how, bad=(3, 7), skip=0.2, workers=workers, out=tmp_path)
    numbers = flat(spoken(feed, feeding.processor))
    assert set(numbers) == set(range(12)) - {3, 7}
    assert sorted(feed.left_out) == [(3, "talks:4", "DataError", "broken on purpose"),
                                     (7, "talks:8", "DataError", "broken on purpose")]
    lines = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line["where"] for line in lines) == ["talks:4", "talks:8"]
    assert feed.summary().startswith("left out 2 of 12 conversations\n      2 DataError, the first at talks:")


def test_what_two_ranks_leave_out_is_told_once(feeding: Any, tmp_path: Path) -> None:
    for rank in range(2):
        list(feeding(tokens=400, pictures=True, bad=(3, 7), skip=0.2, rank=rank, world=2, out=tmp_path))
    assert len((tmp_path / "left_out.jsonl").read_text().splitlines()) == 2


def test_a_log_that_was_cut_off_is_gone_on_with(feeding: Any, tmp_path: Path) -> None:
    given = {"bad": (3, 7), "skip": 0.2, "out": tmp_path}
    list(feeding(**given))
    log = tmp_path / "left_out.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-9])
    list(feeding(**given))
    lines = log.read_text().splitlines()
    assert [json.loads(line) for line in (lines[0], lines[-1])] == [json.loads(line) for line in whole.splitlines()]


@HOW
def test_too_many_bad_ones_stop_the_run(feeding: Any, how: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"too many.*\n.*\n +2 DataError, the first at talks:") as caught:
        list(feeding(**how, bad=(3, 7), skip=0.1))
    assert (caught.value.setting, caught.value.limit) == ("skip", 0.1)
    with pytest.raises(DataError, match="no conversation is left"):
        list(feeding(**how, bad=tuple(range(12)), skip=1.0))


def test_a_budget_that_holds_no_conversation(feeding: Any) -> None:
    with pytest.raises(DataError, match=r"12 ContextLengthError, the first at talks:\d+: \d+ tokens \(limit 5"):
        list(feeding(tokens=5, skip=1.0))


def test_data_of_another_size_are_not_gone_on_with(feeding: Any) -> None:
    feed = feeding()
    next(iter(feed))
    with pytest.raises(ResumeError, match="13 conversations; the run that is resumed had 12"):
        feeding(feed.state(), count=13)


def test_a_process_that_dies_is_told(feeding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Talks, "__getitem__", lambda self, index: __import__("os")._exit(9))
    with pytest.raises(DataError, match="a process that prepares data ended") as caught:
        next(iter(feeding(workers=1)))
    assert "workers=0" in caught.value.hint
