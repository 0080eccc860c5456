"""`tiny` shrunk until a step takes a moment, with a run of few steps."""

from __future__ import annotations

from typing import Any

import pytest

import vlmkit
from vlmkit.compose.preset import Run
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

WORDS = ("decoder.layers=1", "decoder.width=32", "decoder.heads=2", "decoder.kv_heads=1",
         "decoder.ffn=48", "tower.options.channels=[8,8,16,8]", "steps=6", "batch=2", "save_every=3", "workers=0",
         "data.turns=2", "data.skills=[shape, colour]")  # fmt: skip

QUICK = ("steps=30", "batch=4", "save_every=30", "data.count=8", "data.turns=1", "train.tower=2e-2",
         "train.projector=2e-2", "train.decoder=2e-2")  # fmt: skip


def prepare(*words: str) -> tuple[Any, Processor, Run]:
    """A model, its processor and a run; a later word replaces an earlier one, `quick` learns eight scenes by heart."""
    given = [w for word in words for w in (QUICK if word == "quick" else (word,))]
    chosen = {word.partition("=")[0]: word for word in (*WORDS, *given)}
    run = vlmkit.compose("tiny", "runs/tiny", *chosen.values())
    assert isinstance(run, Run)
    assert run.tokenizer is not None
    model = vlmkit.build(run, seed=run.seed)
    return model, Processor(run, assemble(run), Tokenizer.from_file(run.tokenizer.from_)), run


@pytest.fixture
def prepared() -> Any:
    return prepare
