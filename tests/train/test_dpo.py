"""Preference tuning: DPO's value and gradient by hand, and a real model that comes to prefer what was chosen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmkit import registry
from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError
from vlmkit.train import state
from vlmkit.train.data import Feed
from vlmkit.train.dpo import dpo, logps
from vlmkit.train.loop import train

WORDS = ("train={tower: null, separators: null, projector: 3e-3, decoder: 3e-3}", "prefer={beta: 0.5}",
         "data={use: pairs}", "skip=0.4", "batch=3")  # fmt: skip


class Config(PartConfig):
    """Pairs of answers about pictures."""

    count: int = 8
    bare: tuple[int, ...] = ()  # those without a rejected answer


class Pairs:
    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        picture = torch.full((40, 40, 3), 25 * index, dtype=torch.uint8).numpy()
        asked = [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]
        answer = {"role": "assistant", "content": "a red circle", "rejected": "a blue square, or so"}
        if index in self.config.bare:
            del answer["rejected"]
        return [{"role": "user", "content": asked}, answer]


@pytest.fixture(autouse=True)
def pairs() -> Any:
    registry.add("dataset", "pairs", Config, lambda config: Pairs(config))
    yield
    registry._added.pop(("dataset", "pairs"))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def copy(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_value_and_gradient_by_hand() -> None:
    """Equation 7 of the paper; its gradient is -beta * sigmoid(-margin) for chosen, the opposite for rejected."""
    policy = torch.tensor([[-1.0, -2.0], [-3.0, -1.5]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.5, -1.0], [-2.0, -2.0]], dtype=torch.float64)
    values, margins = dpo(policy, reference, 0.2)
    value = values.mean()
    value.backward()
    wanted = [0.2 * ((-1.0 + 1.5) - (-2.0 + 1.0)), 0.2 * ((-3.0 + 2.0) - (-1.5 + 2.0))]
    assert margins.tolist() == pytest.approx(wanted)
    assert value.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in wanted) / 2)
    pulls = [0.2 / (1 + math.exp(m)) / 2 for m in wanted]
    assert policy.grad is not None
    assert policy.grad.flatten().tolist() == pytest.approx([-pulls[0], pulls[0], -pulls[1], pulls[1]])


@pytest.mark.parametrize("chunk", [None, 4])
def test_log_probabilities_are_those_of_each_answer_alone(prepared: Any, chunk: int | None) -> None:
    model, processor, run = prepared(*WORDS)
    model.eval()
    feed = Feed(run, processor)
    batch = next(iter(feed))
    assert len(batch.lens) == 2 * len(feed.held) == 6
    assert len({id(visual.pixels) for visual in batch.visuals}) == 3
    weight = model.decoder.norm.weight
    found = logps(model, batch, chunk)
    (slope,) = torch.autograd.grad(found[0] - found[1], weight)
    wanted = []
    for index in feed.held:
        messages = feed.data[index]
        for answer in (messages[-1]["content"], messages[-1]["rejected"]):
            alone = processor([*messages[:-1], {"role": "assistant", "content": answer}], reply=False, labels=True)
            chances = model.logits(model(alone)).log_softmax(-1)
            learned = [(at - 1, id) for at, id in enumerate(alone.labels.tolist()) if id != -100]
            wanted.append(torch.stack([chances[at, id] for at, id in learned]).sum())
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted[0] - wanted[1], weight)[0], rtol=1e-3, atol=1e-3)


def test_it_comes_to_prefer_and_leaves_alone_what_is_frozen(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared(*WORDS, "steps=20", "save_every=20")
    before = copy(model)
    train(model, processor, run, tmp_path)
    rows = log(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["loss"] < 0.2
    assert rows[-1]["margin"] > 1
    assert rows[-1]["preferred"] == 1
    changed = {name.partition(".")[0] for name, tensor in model.state_dict().items()
               if not torch.equal(tensor, before[name])}  # fmt: skip
    assert changed == {"projector", "decoder"}
    assert "reference" in state.newest(tmp_path).tensors


def test_resuming_is_as_if_nothing_happened(prepared: Any, tmp_path: Path) -> None:
    whole, processor, run = prepared(*WORDS)
    train(whole, processor, run, tmp_path / "whole")
    broken, _, _ = prepared(*WORDS)

    def stop(done: Any) -> None:
        if done.step == 4:  # one step behind the last save
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, processor, run, tmp_path / "broken", told=stop)
    again, processor, run = prepared(*WORDS)
    for p in again.projector.parameters():
        torch.nn.init.constant_(p, 7.0)  # whose own answers would be another reference
    train(again, processor, run, tmp_path / "broken", resume=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    told = [{row["step"]: (row["loss"], row["margin"]) for row in log(tmp_path / name)} for name in ("whole", "broken")]
    assert told[0] == told[1]


def test_without_a_rejected_answer_it_is_left_out_and_told(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared(*WORDS, "data.bare=[2]", "steps=3")
    train(model, processor, run, tmp_path)
    (left,) = map(json.loads, (tmp_path / "left_out.jsonl").read_text().splitlines())
    assert left["number"] == 2
    assert "no `rejected`" in left["what"]
    train(model, processor, run.model_copy(update={"steps": 4}), tmp_path, resume=True)
    with pytest.raises(DataError, match="no `rejected` beside it"):
        train(*prepared(*WORDS, "data.bare=[0, 1, 2, 3, 4, 5, 6, 7]"), tmp_path / "none")


def test_a_pair_that_no_step_holds_is_told(prepared: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in both answers of a pair"):
        train(*prepared(*WORDS, "tokens=20"), tmp_path)


@pytest.mark.parametrize("row", [
    {"question": "What?", "chosen": "A cat.", "rejected": "A dog."},
    {"prompt": "<image>\nWhat?", "chosen": "A cat.", "rejected": "A dog."},
    {"conversations": [{"from": "human", "value": "<image>\nWhat?"}], "chosen": {"from": "gpt", "value": "A cat."},
     "rejected": {"from": "gpt", "value": "A dog."}},
    {"messages": [{"role": "user", "content": "<image>\nWhat?"},
                  {"role": "assistant", "content": "A cat.", "rejected": "A dog."}]},
    {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]}],
     "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
     "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]},
])  # fmt: skip
def test_rows_of_preference_sets(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row | {"image": "0.png"}) + "\n")
    config = registry.find("dataset", "conversations").config
    data: Any = config.model_validate({"use": "conversations", "file": str(tmp_path / "p.jsonl")}).build()
    seen = {"type": "image", "image": str(tmp_path / "0.png")}
    assert data[0] == [{"role": "user", "content": [seen, {"type": "text", "text": "\nWhat?"}]},
                       {"role": "assistant", "content": "A cat.", "rejected": "A dog."}]
