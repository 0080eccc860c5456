"""What a frozen tower saw is kept: the same numbers, no second look, shared between runs, and never wrong."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmkit.train import features
from vlmkit.train.data import Feed
from vlmkit.train.features import keeping
from vlmkit.train.loop import train
from vlmkit.train.loss import loss


class Looks:
    """Counts the tiles that go through a tower."""

    def __init__(self, tower: Any) -> None:
        self.tiles = 0
        tower.register_forward_pre_hook(self.see)

    def see(self, tower: Any, given: Any) -> None:
        self.tiles += len(given[0])


def frozen(prepared: Any, *words: str) -> Any:
    """A model whose tower is frozen, its run, its batches and the counter of its tiles."""
    model, processor, run = prepared("steps=6", "data.count=6", "batch=2", *words)
    model.requires_grad_(False).eval()
    model.projector.requires_grad_(True).train()
    return model, run, list(Feed(run, processor)), Looks(model.tower)


def losses(model: Any, batches: Any) -> list[float]:
    """Losses and the gradients they make, each as one number."""
    found = []
    for batch in batches:
        model.zero_grad()
        value = loss(model, batch)
        value.backward()
        found += [value.item(), *(float(p.grad.double().norm()) for p in model.projector.parameters())]
    return found


def test_the_same_numbers_and_no_second_look(prepared: Any, tmp_path: Path) -> None:
    """Two epochs of six conversations: in the second one the tower is not asked, and nothing differs by a bit."""
    model, run, batches, looks = frozen(prepared)
    whole = losses(model, batches)
    tiles, looks.tiles = looks.tiles, 0
    with keeping(model, run, tmp_path) as kept:
        assert losses(model, batches) == whole
    assert 0 < looks.tiles <= tiles // 2 + 2  # two again, to see that they are what they were among many
    assert model.kept is None
    shelf, = kept.shelves.values()
    assert shelf.hits >= tiles // 2
    looks.tiles = 0
    with keeping(model, run, tmp_path):  # another cell of a study
        assert losses(model, batches) == whole
    assert looks.tiles == 0


def test_files_are_mapped_and_whole(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written as soon as it is a shard, under its final name at once."""
    monkeypatch.setattr(features, "SHARD", 3_000)
    model, run, batches, looks = frozen(prepared)
    with keeping(model, run, tmp_path) as kept:
        whole = losses(model, batches)
        kept.flush()
        written = list(tmp_path.rglob("*.safetensors"))
        assert len(written) > 1
        assert all(str(file) in Path("/proc/self/maps").read_text() for file in written)
        assert not list(tmp_path.rglob("*.part"))
        looks.tiles = 0
        assert losses(model, batches) == whole
        assert looks.tiles == 0
    (written[0].parent / ".0123.part").write_bytes(b"cut off")
    with keeping(model, run, tmp_path):
        assert losses(model, batches) == whole
    assert looks.tiles == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "gone"])
def test_damage_is_seen_anew(prepared: Any, tmp_path: Path, damage: str) -> None:
    model, run, batches, looks = frozen(prepared)
    with keeping(model, run, tmp_path):
        whole = losses(model, batches)
    looks.tiles = 0
    for file in tmp_path.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        if damage == "gone":
            file.unlink()
        elif damage == "flipped":
            for at in range(len(data) // 2, len(data) - 400, 2000):
                data[at] ^= 4
            file.write_bytes(data)
        else:
            file.write_bytes({"cut": data[:-99], "empty": b"", "other": b'\2\0\0\0\0\0\0\0{}'}[damage])
    with keeping(model, run, tmp_path):
        assert losses(model, batches) == whole
    assert looks.tiles > 0


def test_a_folder_that_vanishes_hurts_nobody(prepared: Any, tmp_path: Path) -> None:
    import shutil

    model, run, batches, _ = frozen(prepared)
    told: list[str] = []
    with keeping(model, run, tmp_path / "kept", told=told.append):
        whole = losses(model, batches[:3])
        shutil.rmtree(tmp_path / "kept")
        assert losses(model, batches[:3]) == whole
    assert "cannot be written" in told[0]


@pytest.mark.parametrize("change", ["weight", "field", "dtype"])
def test_another_tower_has_another_folder(prepared: Any, tmp_path: Path, change: str) -> None:
    model, run, batches, looks = frozen(prepared)
    with keeping(model, run, tmp_path):
        losses(model, batches)
    if change == "weight":
        with torch.no_grad():
            next(model.tower.parameters()).view(-1)[3] += 1e-4
    elif change == "field":
        run = run.model_copy(update={"tower": run.tower.model_copy(update={"layer": -3})})
    else:
        model.to(torch.float64)
    before, looks.tiles = losses(model, batches), 0
    with keeping(model, run, tmp_path):
        assert losses(model, batches) == before
    assert looks.tiles > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_tower_that_learns_is_left_alone(prepared: Any, tmp_path: Path) -> None:
    """Also one that begins to learn later."""
    model, run, batches, looks = frozen(prepared)
    with keeping(model, run, tmp_path):
        losses(model, batches)
        model.tower.requires_grad_(True).train()
        looks.tiles = 0
        loss(model, batches[0]).backward()
        assert looks.tiles == sum(len(visual.pixels) for visual in batches[0].visuals)
        assert all(p.grad is not None for p in model.tower.parameters())


@pytest.mark.parametrize(("words", "again", "kept"), [
    ((), True, True), ((), False, False), (("machine.features=\"on\"",), False, True),
    (("machine.features=\"off\"",), True, False), (("machine.features=\"on\"", "machine.shard=fsdp"), True, False),
])  # fmt: skip
def test_when_it_keeps(prepared: Any, tmp_path: Path, words: Any, again: bool, kept: bool) -> None:
    model, run, batches, _ = frozen(prepared, *words)
    with keeping(model, run, tmp_path, again) as found:
        assert (found is not None) == kept
        loss(model, batches[0])
    assert bool(list(tmp_path.iterdir())) == kept


class Cheap(torch.nn.Module):
    """A tower that takes less time than any hash."""

    side, width, mean, std, unused = 64, 3, (0.5,) * 3, (0.5,) * 3, 0
    blocks = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pixels: torch.Tensor) -> Any:
        from vlmkit.types import Features

        return Features(torch.zeros(len(pixels), 16, self.width), 4, 4)


def test_it_stops_where_it_does_not_pay(prepared: Any, tmp_path: Path) -> None:
    model, run, _, _ = frozen(prepared)
    model.tower = Cheap(model.tower.width).eval()
    told: list[str] = []
    with keeping(model, run, tmp_path, told=told.append) as kept, torch.no_grad():
        for at in range(12):
            pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(at))
            assert kept.see(model.tower, pixels).tokens.shape == (8, 16, model.tower.width)
    assert len(told) == 1
    assert "the tower takes" in told[0]
    assert not list(tmp_path.rglob("*.safetensors"))
    always = run.model_copy(update={"machine": run.machine.model_copy(update={"features": "on"})})
    with keeping(model, always, tmp_path) as kept, torch.no_grad():
        for at in range(12):
            kept.see(model.tower, torch.full((8, 3, 64, 64), at, dtype=torch.uint8))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_tower_whose_numbers_hang_on_company_is_left_alone(prepared: Any, tmp_path: Path) -> None:
    model, run, batches, _ = frozen(prepared)
    forward = model.tower.forward

    def uneven(pixels: Any) -> Any:
        found = forward(pixels)
        return found._replace(tokens=found.tokens + 1e-7 * len(pixels))

    model.tower.forward = uneven
    whole, told = losses(model, batches), []
    with keeping(model, run, tmp_path, told=told.append):
        assert losses(model, batches) == whole
    assert "depend on how many tiles" in told[0]


def test_a_bound_is_kept(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 3_000)
    monkeypatch.setattr(features, "MOST", 25_000)
    model, run, batches, _ = frozen(prepared)
    whole, told = losses(model, batches), []
    with keeping(model, run, tmp_path, told=told.append):
        assert losses(model, batches) == whole
    files = list(tmp_path.rglob("*.safetensors"))
    assert files
    assert sum(map(os.path.getsize, files)) < 27_000
    assert "is full" in told[0]


def test_two_at_once_share(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes in what the other wrote when it writes itself."""
    model, run, batches, looks = frozen(prepared)
    with ExitStack() as stack:
        one = stack.enter_context(keeping(model, run, tmp_path))
        first = losses(model, batches[:2])
        two = stack.enter_context(keeping(model, run, tmp_path))
        losses(model, batches[2:3])
        one.flush()
        two.flush()
        looks.tiles = 0
        assert losses(model, batches[:2]) == first
        assert looks.tiles == 0


def test_a_run_is_the_same_with_and_without(prepared: Any, tmp_path: Path) -> None:
    """Through the loop, over two epochs and a stop in the second one, in which no tower is asked."""
    words = ("steps=6", "data.count=6", "batch=2", "save_every=2")
    losses, asked = {}, {}

    def go(name: str, stop: int = 9, resume: bool = False, *more: str) -> None:
        model, processor, run = prepared(*words, *more)
        run = run.model_copy(update={"train": {"projector": run.train["projector"]}})
        looks, seen = Looks(model.tower), list[int]()

        def told(done: Any) -> None:
            seen.append(looks.tiles)
            if done.step == stop:
                raise InterruptedError

        with suppress(InterruptedError):
            train(model, processor, run, tmp_path / name, resume, told)
        asked[name] = seen
        rows = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = {row["step"]: row["loss"] for row in rows}

    go("off", 9, False, 'machine.features="off"')
    go("auto")
    go("stopped", 4)
    go("stopped", 9, True)
    assert losses["off"] == losses["auto"] == losses["stopped"]
    assert len(losses["off"]) == 6
    assert asked["off"][5] > asked["off"][2]
    assert asked["auto"][5] == asked["auto"][2]
    assert asked["stopped"][-1] == 0
