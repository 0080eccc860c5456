"""Stages and parts: each learns at its own rate, in its own layers, from its own step on, in its own stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmkit
from vlmkit.errors import PresetError
from vlmkit.train import state
from vlmkit.train.loop import train
from vlmkit.train.stages import Learner, chosen, stages

TWO = "stages=[{name: align, train: {projector: 1e-2}, steps: 2}, {name: instruct, steps: 3, batch: 3}]"


def copy(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_each_stage_lays_its_fields_over_the_run(prepared: Any) -> None:
    _, _, run = prepared(TWO, "tokens=500")
    align, instruct = stages(run).values()
    assert (list(align.train), align.steps, align.batch, align.tokens) == (["projector"], 2, 2, 500)
    assert (instruct.train, instruct.steps, instruct.batch, instruct.tokens) == (run.train, 3, 3, None)
    assert stages(prepared()[2]).keys() == {""}


def test_the_model_goes_on_from_stage_to_stage(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared(TWO)
    fresh = copy(model)
    after = copy(train(model, processor, run, tmp_path))
    align = vlmkit.load(tmp_path / "stages" / "align")[0].state_dict()
    assert {n.partition(".")[0] for n in changed(fresh, align)} == {"projector"}
    assert changed(after, vlmkit.load(tmp_path / "stages" / "instruct")[0].state_dict()) == set()
    assert {n.partition(".")[0] for n in changed(align, after)} == set(run.train)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_going_on_in_any_stage(prepared: Any, tmp_path: Path, at: int) -> None:
    whole = copy(train(*prepared(TWO, "save_every=1"), tmp_path / "whole"))

    class Stop(Exception):
        pass

    def stop(done: Any) -> None:
        if done.step + 1 == at:
            raise Stop

    with pytest.raises(Stop):
        train(*prepared(TWO, "save_every=1"), tmp_path / "broken", told=stop)
    steps = []
    again = train(*prepared(TWO, "save_every=1"), tmp_path / "broken", resume=True, told=lambda d: steps.append(d.step))
    assert changed(whole, copy(again)) == set()
    assert steps == list(range(at, 5))


def test_rates_decay_and_layers(prepared: Any) -> None:
    model, _, run = prepared("decoder.layers=3", "train.decoder={rate: 1e-3, weight_decay: 0.5, layers: '-2:'}",
                             "train.separators=null", "steps=10", "schedule.warmup=0.2")  # fmt: skip
    learner = Learner(model, run, torch.float32)
    assert {n.split(".")[2] for n in learner.asked if n.startswith("decoder")} == {"1", "2"}
    assert not any(p.requires_grad for p in model.parameters())
    learner.begin(0)
    rate = {id(p): g["lr"] for o in learner.optimizers for g in o.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for o in learner.optimizers for g in o.param_groups for p in g["params"]}
    q, tower = model.decoder.blocks[2].attn.q, next(model.tower.parameters())
    assert (rate[id(q.weight)], decay[id(q.weight)], decay[id(q.bias)]) == (5e-4, 0.5, 0.0)
    assert (rate[id(tower)], decay[id(tower)]) == (1e-3, 0.02)
    assert not model.decoder.blocks[0].training
    assert model.decoder.blocks[1].training


def test_the_inner_section_counts_and_adamw_is_for_all(prepared: Any) -> None:
    model, _, run = prepared("optimizer=adamw")
    train_ = {"decoder": run.train["decoder"], "decoder.embed": run.train["tower"]}
    assert chosen(model, train_)["decoder.embed.weight"] == "decoder.embed"
    assert chosen(model, train_)["decoder.norm.weight"] == "decoder"
    assert [type(o) for o in Learner(model, run, torch.float32).optimizers] == [torch.optim.AdamW]


def test_unknown_layers(prepared: Any) -> None:
    model, _, run = prepared("train.decoder={rate: 1e-3, layers: '7:'}")
    with pytest.raises(PresetError, match="decoder has 1 blocks; 7:"):
        chosen(model, run.train)


def test_frozen_until_its_step(prepared: Any, tmp_path: Path) -> None:
    """From step 2 on the decoder learns, and is audited then."""
    model, processor, run = prepared("train.decoder={rate: 1e-2, from_step: 2}", "steps=4", "save_every=1")
    before, seen, heard = copy(model), [], []

    def told(done: Any) -> None:
        seen.append({n.partition(".")[0] for n in changed(before, model.state_dict())})

    train(model, processor, run, tmp_path, told=told, said=heard.append)
    assert ["decoder" in parts for parts in seen] == [False, False, True, True]
    assert all("projector" in parts for parts in seen)
    assert ["decoder" in table for table in heard if table.startswith("part")] == [False, True]


def test_bfloat16_has_masters_in_float32(prepared: Any, tmp_path: Path) -> None:
    """A rate so small that bfloat16 alone would round every step away."""
    rates = (f"train.{part}=1e-6" for part in ("tower", "projector", "decoder", "separators"))
    words = ("machine.dtype=bfloat16", "steps=4", *rates)
    model, processor, run = prepared(*words)
    start = copy(model)
    train(model, processor, run, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tensors = state.load(state.saves(tmp_path)[-1])
    name = "decoder.blocks.0.mlp.up.weight"
    master = tensors[f"master.{name}"]
    assert master.dtype == torch.float32
    assert not torch.equal(master, start[name])
    assert (master - start[name]).abs().max() < 1e-5
    assert torch.equal(model.state_dict()[name], master.bfloat16())
    again, processor, run = prepared(*words)
    train(again, processor, run, tmp_path, resume=True)
    assert changed(copy(model), copy(again)) == set()
