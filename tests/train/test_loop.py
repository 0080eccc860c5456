"""A run on drawn scenes: it learns, it leaves alone what it must, and it goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmkit.compose.preset import Learns, Schedule
from vlmkit.errors import PresetError, ResumeError, VlmkitError
from vlmkit.train import state
from vlmkit.train.loop import train
from vlmkit.train.stages import share


def copy(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: Any) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("quick", "data.skills=[shape]")
    before = copy(model)
    assert train(model, processor, run, tmp_path) is model
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == list(range(30))
    assert rows[0]["loss"] == pytest.approx(math.log(464), rel=0.15)  # a guess among all ids
    assert sum(row["loss"] for row in rows[-5:]) / 5 < 0.2 * rows[0]["loss"]
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for row in rows)
    assert not model.training
    assert {name.partition(".")[0] for name in changed(before, model)} == set(run.train)


@pytest.mark.parametrize(("section", "rate"), [("projector", 1e-2), ("decoder.blocks.0.attn", 1e-3), ("tower", 1e-3)])
def test_only_what_is_named_changes(prepared: Any, tmp_path: Path, section: str, rate: float) -> None:
    model, processor, run = prepared("steps=2")
    run = run.model_copy(update={"train": {section: Learns(rate=rate)}})
    before = copy(model)
    train(model, processor, run, tmp_path)
    assert changed(before, model)
    assert all(name.startswith(section + ".") for name in changed(before, model))


def test_a_name_is_no_prefix(prepared: Any, tmp_path: Path) -> None:
    """`decoder.norm` is not `decoder.normal`, and nothing is called `dec`."""
    model, processor, run = prepared()
    with pytest.raises(PresetError, match=r"'dec'.*\n.*tower, projector, decoder"):
        train(model, processor, run.model_copy(update={"train": {"dec": Learns(rate=1e-3)}}), tmp_path)


class Stop(Exception):
    pass


def stop_after(model: Any, steps: int) -> Any:
    seen = [0]

    def hook(*_: Any) -> None:
        if seen[0] == steps:
            raise Stop
        seen[0] += 1

    return model.register_forward_pre_hook(hook)


def test_resuming_is_as_if_nothing_happened(prepared: Any, tmp_path: Path) -> None:
    whole, processor, run = prepared("tower.options.drop_path_rate=0.5")
    train(whole, processor, run, tmp_path / "whole")
    broken, processor, run = prepared("tower.options.drop_path_rate=0.5")
    stop_after(broken, 5)  # two steps behind the last save
    with pytest.raises(Stop):
        train(broken, processor, run, tmp_path / "broken")
    torch.manual_seed(99)
    again, processor, run = prepared("tower.options.drop_path_rate=0.5", "seed=0")
    for p in again.parameters():
        torch.nn.init.constant_(p, 7.0)
    train(again, processor, run, tmp_path / "broken", resume=True)
    assert changed(copy(whole), again) == set()
    last = {row["step"]: row["loss"] for row in log(tmp_path / "broken")}
    assert last == {row["step"]: row["loss"] for row in log(tmp_path / "whole")}


def test_workers_change_nothing(prepared: Any, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        model, processor, run = prepared(f"workers={workers}", "steps=3")
        train(model, processor, run, tmp_path / str(workers))
        results.append(copy(model))
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_nothing_to_resume(prepared: Any, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="nothing to resume"):
        train(*prepared(), tmp_path, resume=True)


def test_another_model_is_refused_whole(prepared: Any, tmp_path: Path) -> None:
    train(*prepared("steps=1"), tmp_path)
    model, processor, run = prepared("decoder.layers=2")
    before = copy(model)
    with pytest.raises(ResumeError, match="no state of this run"):
        train(model, processor, run, tmp_path, resume=True)
    assert changed(before, model) == set()


def test_a_finished_run_stays_finished(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("steps=2")
    train(model, processor, run, tmp_path)
    done = copy(model)
    train(model, processor, run, tmp_path, resume=True)
    assert changed(done, model) == set()
    assert len(log(tmp_path)) == 2


def test_a_loss_that_is_no_number_touches_nothing(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("save_every=1")
    train(model, processor, run.model_copy(update={"steps": 1}), tmp_path)
    with torch.no_grad():
        model.decoder.norm.weight[3] = math.nan
    weights = {name: p.clone() for name, p in model.named_parameters()}
    saved = {f.name: f.read_bytes() for f in state.saves(tmp_path)[-1].iterdir()}
    with pytest.raises(VlmkitError, match="not finite") as caught:
        train(model, processor, run, tmp_path)
    assert "resume" in caught.value.hint
    assert all(torch.equal(p.nan_to_num(-5), weights[n].nan_to_num(-5)) for n, p in model.named_parameters())
    assert {f.name: f.read_bytes() for f in state.saves(tmp_path)[-1].iterdir()} == saved
    assert "conversations [0, 1]" in str(caught.value)


def test_the_learning_rate_rises_and_falls() -> None:
    """Warm-up is linear over its share, then half a cosine: full, half in the middle, nearly nothing."""
    shares = [share(step, 110, Schedule(warmup=10 / 110)) for step in range(110)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[60] == pytest.approx(0.5)
    assert shares[109] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert share(0, 1, Schedule(warmup=0.0)) == 1.0


def test_the_learning_rate_may_stay_up_before_it_falls() -> None:
    """Of 100 steps the last 20 fall: full up to the eightieth, half in the middle of the fall."""
    shares = [share(step, 100, Schedule(warmup=0.1, decay=0.2)) for step in range(100)]
    assert set(shares[10:81]) == {1.0}
    assert shares[90] == pytest.approx(0.5)
    assert shares[81:] == sorted(shares[81:], reverse=True)
    assert shares[99] == pytest.approx((1 + math.cos(math.pi * 0.95)) / 2)
