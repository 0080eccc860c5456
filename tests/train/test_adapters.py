"""Adapters: they learn and nothing else does, they are a PEFT folder, and merged they are the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from vlmkit.checkpoint.quantize import quantize
from vlmkit.errors import PresetError
from vlmkit.train import adapters, state
from vlmkit.train.log import Log
from vlmkit.train.loop import Work, train
from vlmkit.train.parallel import Ranks

LORA = ("train.decoder={rate: 1e-2, lora: {rank: 4, alpha: 8}}", "train.tower=null", "train.projector=null",
        "train.separators=null")  # fmt: skip
LINEAR = (".q.weight", ".k.weight", ".v.weight", ".o.weight", ".gate.weight", ".up.weight", ".down.weight")


def copy(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def answered(model: Any, processor: Any, run: Any) -> Tensor:
    """[total, width]"""
    with torch.no_grad():
        return model(processor([run.data.build()[5]], reply=False, labels=True))


def test_only_adapters_learn_and_they_are_merged(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("quick", "steps=4", *LORA)
    before = copy(model)
    out = train(model, processor, run, tmp_path)
    after = copy(out)
    assert after.keys() == before.keys()
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    assert moved
    assert all(n.startswith("decoder.blocks.") and n.endswith(LINEAR) for n in moved)
    names = state.load(state.saves(tmp_path)[-1]).keys()
    assert all(".lora_" in n for n in names if n.startswith(("model.", "optimizer.")))


def test_the_folder_is_one_that_peft_reads(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("quick", "steps=4", *LORA)
    trained = answered(train(model, processor, run, tmp_path), processor, run)
    fresh, _, _ = prepared("quick", *LORA)
    plain = answered(fresh.eval(), processor, run)
    peft.PeftModel.from_pretrained(fresh.decoder, tmp_path / "adapters" / "decoder")
    assert not torch.allclose(trained, plain, atol=1e-3)
    torch.testing.assert_close(answered(fresh.eval(), processor, run), trained, atol=1e-5, rtol=1e-5)


def test_going_on_with_adapters_is_exact(prepared: Any, tmp_path: Path) -> None:
    whole = train(*prepared("quick", "steps=6", "save_every=3", *LORA), tmp_path / "whole")
    model, processor, run = prepared("quick", "steps=6", "save_every=3", *LORA)

    class Stop(Exception):
        pass

    def stop(done: Any) -> None:
        if done.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(model, processor, run, tmp_path / "broken", told=stop)
    again = train(*prepared("quick", "steps=6", "save_every=3", *LORA), tmp_path / "broken", resume=True)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


def test_over_few_bits(prepared: Any, tmp_path: Path) -> None:
    """QLoRA: the packed matrices stay, and the merged layer is theirs and the adapter's sum."""
    model, processor, run = prepared("quick", "steps=4", *LORA)
    quantize(model, "int8")
    work = Work(model, processor, run, tmp_path, "", 0, set(), Ranks(run.machine, torch.device("cpu")))
    packed = {n: t.clone() for n, t in model.state_dict().items() if t.dtype == torch.int8}
    log = Log(tmp_path, run, 0)
    work.go(None, log, lambda done: None, lambda text: None)
    assert packed
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in packed.items())
    model.eval()
    before = answered(model, processor, run)
    adapters.finish(model, run, tmp_path / "adapters")
    assert not [n for n, t in model.state_dict().items() if t.dtype == torch.int8]
    torch.testing.assert_close(answered(model, processor, run), before, atol=1e-4, rtol=1e-4)


def test_a_part_without_linear_layers(prepared: Any, tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"train.tower.lora.*no linear layer"):
        train(*prepared("train.tower={rate: 1e-2, lora: {rank: 4}}"), tmp_path)
