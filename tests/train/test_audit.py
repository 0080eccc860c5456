"""The audit: a table when all is well, one clear error when something that should learn does not, or is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlmkit.errors import VlmkitError
from vlmkit.train import audit, loop
from vlmkit.train.loop import train
from vlmkit.train.stages import mark

VIT = ("tower.model=vit_tiny_patch16_224", "tower.options=null", "tower.options.img_size=64", "tower.options.depth=3",
       "tower.options.embed_dim=32", "tower.options.num_heads=2", "tower.side=null")  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    return {line.split("  ")[0]: line.split()[1:] for line in text.splitlines()}


def test_the_table(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("steps=1", "train.tower=null")
    heard: list[str] = []
    train(model, processor, run, tmp_path, said=heard.append)
    told = next(text for text in heard if text.startswith("part"))
    table = rows(told)
    decoder = dict(model.decoder.named_parameters())
    count = str(len(decoder))
    assert table["decoder"] == [f"{sum(p.numel() for p in decoder.values()):,}", count, count, count, count, count]
    assert table["the rest"][-4:] == ["rest", f"{sum(p.numel() for p in model.tower.parameters()):,}", "0", "0"]
    assert (tmp_path / "audit.txt").read_text() == told + "\n"


def test_the_layer_behind_the_one_that_is_read(prepared: Any, tmp_path: Path) -> None:
    """`whole: true` builds it, `train` asks for it, and nothing leads from it to the loss."""
    model, processor, run = prepared(*VIT, "tower.layer=1", "tower.whole=true", "train.tower=1e-3")
    with pytest.raises(VlmkitError, match=r"tower\.vit\.blocks\.1\..* and \d+ more: got no gradient") as caught:
        train(model, processor, run, tmp_path)
    assert "has gradient" in str(caught.value)
    model, processor, run = prepared(*VIT, "tower.layer=1", "tower.whole=true",
                                     "train.tower={rate: 1e-3, layers: ':1'}")
    train(model, processor, run, tmp_path / "cut")


def test_adapters_on_a_tower_that_no_gradient_reaches(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared(*VIT, "train.tower={rate: 1e-3, lora: {rank: 2}}")
    look = model.tower.look
    model.tower.look = lambda *given: torch.no_grad()(look)(*given)  # as a cache of features would give them
    with pytest.raises(VlmkitError, match=r"tower\..*lora_.*got no gradient"):
        train(model, processor, run, tmp_path)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("model.tower.")}, "not in what was saved"),
    (lambda tensors: {n: t.roll(1) * 2 if n.startswith("model.tower.") else t for n, t in tensors.items()},
     "another one after it was saved"),
])  # fmt: skip
def test_an_unsaved_tower(prepared: Any, tmp_path: Path, monkeypatch: Any, spoil: Any, said: str) -> None:
    model, processor, run = prepared()
    save = loop.state.save
    monkeypatch.setattr(loop.state, "save", lambda *given: save(*given[:3], spoil(given[3])))
    with pytest.raises(VlmkitError, match=rf"tower\..*{said}"):
        train(model, processor, run, tmp_path)


def test_something_frozen_that_moves(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("train.tower=null")

    def push(*_: Any) -> None:
        with torch.no_grad():
            next(model.tower.parameters()).view(-1)[0] += 1e-3

    model.decoder.register_forward_pre_hook(push)
    with pytest.raises(VlmkitError, match="frozen"):
        train(model, processor, run, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.bool])
def test_a_mark_sees_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    before = mark(tensor)
    assert mark(tensor.clone()) == before == mark(tensor.t().contiguous().t())
    tensor[1, 1] = 0 if dtype == torch.bool else 9
    assert mark(tensor) != before


def test_labels_tell_learned_and_masked_apart(prepared: Any) -> None:
    _, processor, _ = prepared()
    picture = torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()
    pieces = audit.labels(processor, [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "which shape?"}]},
        {"role": "assistant", "content": "a circle"}])  # fmt: skip
    assert [text for text, learned in pieces if learned] == ["a circle<|im_end|>"]
    assert sum("visual tokens]" in text for text, learned in pieces if not learned) == 1
    assert "which shape?" in "".join(text for text, learned in pieces if not learned)
