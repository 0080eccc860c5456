"""A model of a few thousand weights, and its folder; the small models of the parity tests are importable, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmkit
from vlmkit.compose.preset import Preset
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
pytest.register_assert_rewrite("agreement")

SMALL = ("decoder.layers=1", "decoder.width=32", "decoder.heads=2", "decoder.kv_heads=1", "decoder.ffn=48",
         "tower.options.channels=[8,8,16,8]")  # fmt: skip


def make(preset: Preset, **how: Any) -> tuple[Any, Processor]:
    """A model with random weights, running statistics included, and its processor."""
    model = vlmkit.build(preset, **how)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():  # weights that start equal would hide a swap
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=draw).to(tensor.dtype))
            else:
                tensor.add_(3)
    assert preset.tokenizer is not None
    return model.eval(), Processor(preset, assemble(preset), Tokenizer.from_file(preset.tokenizer.from_))


@pytest.fixture(scope="session")
def small() -> tuple[Any, Processor]:
    return make(vlmkit.compose("tiny", *SMALL))


@pytest.fixture
def folder(small: tuple[Any, Processor], tmp_path: Path) -> Path:
    return vlmkit.save(*small, tmp_path / "model")
