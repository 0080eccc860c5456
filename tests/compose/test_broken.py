"""Presets with an honest mistake: caught before anything is built, with the place and the remedy in the message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

import vlmkit
from vlmkit.compose.bind import compose
from vlmkit.errors import PresetError, ShapeError, VlmkitError

FIVE, SIX, ONE = "llava-1.5-7b", "llava-next-vicuna-7b", "llava-onevision-qwen2-0.5b"

# base; what the file says; what the message must hold: the path or place, then what was wanted or a remedy
COMPOSED: list[tuple[str, str, list[str]]] = [
    (FIVE, "tower: {model: [a]}", ["tower.model", "p.yaml:2", "text"]),
    (FIVE, "tower: {model: ''}", ["tower.model", "p.yaml:2"]),
    (FIVE, "tower: {layer: second}", ["tower.layer", "an integer or a list"]),
    (FIVE, "tower: {layer: [-2, x]}", ["tower.layer[1]", "an integer"]),
    (FIVE, "tower: {prefix: dropped}", ["tower.prefix", "did you mean 'drop'"]),
    (FIVE, "tower: {mean: [0.5, 0.5]}", ["tower.mean[2]", "missing"]),
    (FIVE, "tower: {options: {pretrained: true}}", ["tower.options", "weights"]),
    (FIVE, "tower: {options: {depth: 10000}}", ["tower.options", "depth", "at most 512"]),
    (FIVE, "tower: {std: [0.5, 0, 0.5]}", ["tower.std", "above 0"]),
    (FIVE, "tower: {side: 1000000}", ["tower.side", "at most 8192"]),
    (FIVE, "tower: {use: tim}", ["tower.use", "did you mean 'timm'"]),
    (FIVE, "tower:\n  use: timm\n  layers: -2", ["tower.layers", "p.yaml:4", "did you mean 'layer'"]),
    (FIVE, "tower: null", ["tower", "is missing", "timm"]),
    (FIVE, "projector: mpl", ["projector.use", "did you mean 'mlp'"]),
    (FIVE, "projector: {depth: 0}", ["projector.depth", "at least 1", "got 0"]),
    (FIVE, "projector: {depth: 1.5}", ["projector.depth", "an integer", "1.5"]),
    (FIVE, "projector: {act: gleu}", ["projector.act", "did you mean 'gelu'"]),
    (FIVE, "projector: {use: resampler, querys: 64}", ["projector.querys", "did you mean 'queries'"]),
    (FIVE, "projector: {use: linear, depth: 2}", ["projector.depth", "no such field", "linear"]),
    (FIVE, "decoder: {size: vicuna-7b}", ["decoder", "p.yaml:2", "vicuna-7b"]),
    (FIVE, "decoder: {vocab: many}", ["decoder.vocab", "an integer"]),
    (FIVE, "decoder: {layers: 1000000000}", ["decoder.layers", "at most 1024"]),
    (FIVE, "decoder: {heads: 30}", ["decoder", "30 heads", "4096", "give `head`"]),
    (FIVE, "decoder: {heads: 0}", ["decoder.heads", "at least 1"]),
    (FIVE, "decoder: {kv_heads: 7}", ["decoder", "32 heads", "7"]),
    (FIVE, "decoder: {rope: {type: ntk}}", ["decoder.rope.type", "'linear'"]),
    (FIVE, "decoder: {rope: {scale: 2}}", ["decoder.rope.scale", "factor"]),
    (FIVE, "decoder: {window: -1}", ["decoder.window", "at least 1"]),
    (FIVE, "chat: {style: vicuna}", ["chat.style", "vicuna_v1"]),
    (FIVE, "chat: {system: 3}", ["chat.system", "text"]),
    (FIVE, "chat: 5", ["chat", "expected a chat"]),
    (FIVE, "image: {tiler: {fit: stretch}}", ["image.tiler.fit", "'squash'"]),
    (FIVE, "image: {tiler: {use: anyres}}", ["image.tiler", "grids", "largest"]),
    (SIX, "image: {tiler: {grids: [[1, 2, 3]]}}", ["image.tiler.grids", "at most 2"]),
    (SIX, "image: {tiler: {grids: [[1, 0]]}}", ["image.tiler", "rows and columns"]),
    (FIVE, "image: {tiler: {use: anyres, largest: [0, 2]}}", ["image.tiler", "rows and columns are 1 to 64"]),
    (SIX, "image: {tiler: {largest: [6, 6]}}", ["image.tiler", "either"]),
    (SIX, "image: {packer: {budget: 0}}", ["image.packer.budget", "more than 0"]),
    (SIX, "image: {packer: {newline: rows}}", ["image.packer.newline", "did you mean 'row'"]),
    (SIX, "image: {packer: null}", ["image.packer", "is missing", "anyres, flat"]),
    (SIX, "image: [a]", ["image[0]", "section"]),
    (SIX, "image: {sampler: uniform}", ["image.sampler", "no such field"]),
    (FIVE, "image: null", ["nothing to look at", "`video`"]),
    (ONE, "video: {sampler: {frames: 0}}", ["video.sampler.frames", "at least 1"]),
    (ONE, "video: {sampler: {use: fps, frames: 8}}", ["video.sampler.frames", "fps"]),
    (ONE, "video: {packer: {use: slofast}}", ["video.packer.use", "did you mean 'slowfast'"]),
    (ONE, "video: {packer: {stride: 2.0}}", ["video.packer.stride", "an integer"]),
    (ONE, "video: {sampler: null}", ["video.sampler", "is missing", "fps, uniform"]),
    (FIVE, "video: {tiler: square, packer: flat}", ["video.sampler", "is missing"]),
    (FIVE, "audio: {tower: timm}", ["audio", "no such field"]),
    (FIVE, "tokenizer: llava-hf/llava-1.5-7b-hf", ["tokenizer", "a section of fields"]),
    (FIVE, "tokenizer: {form: x}", ["tokenizer.form", "did you mean 'from'"]),
    (FIVE, "weights: [{from: a/b}]", ["weights[0].format", "missing"]),
    (FIVE, "weights: [{from: a/b, format: native, into: [tow]}]", ["weights[0].into[0]", "did you mean 'tower'"]),
    (FIVE, "needs: vlmkit-tome", ["needs", "a list"]),
    (FIVE, "needs: [vlmkit-tome]\nprojector: tome", ["needs[0]", "vlmkit-tome is not installed", "projector.use"]),
    (FIVE, "extends: llava-1.5-7", ["p.yaml:2", "llava-1.5-7b"]),
]  # fmt: skip

# base, words, what the message must hold: found by rehearsal on the meta device
REHEARSED: list[tuple[str, list[str], list[str]]] = [
    (SIX, ["projector=resampler"], ["image", "anyres", "rows and columns"]),
    (FIVE, ["projector={use: resampler, heads: 7}"], ["projector", "7"]),
    (FIVE, ["projector={use: pixel_shuffle, factor: 5}"], ["5"]),
    (FIVE, ["tower.model=vit_large_patch14_clip_quickgelu_337.openai"], ["vit_large_patch14_clip_quickgelu_337"]),
    (FIVE, ["tower.layer=-30"], ["-30"]),
    (FIVE, ["tower.layer=25"], ["25"]),
    (FIVE, ["tower.options={img_sise: 224}"], ["img_sise"]),
    (ONE, ["projector=resampler", "image.packer=flat"], ["video", "rows and columns"]),
    (ONE, ["video.packer.pool=average", "video.packer.stride=40"], ["video.packer", "too small"]),
]


@pytest.fixture(autouse=True)
def nothing_is_allocated() -> Iterator[None]:
    """Every parameter that is made while a preset is checked lives on the meta device."""

    def look(module: Any, name: str, parameter: Any) -> None:
        assert parameter is None or parameter.device == torch.device("meta"), f"{name} was allocated"

    hook = register_module_parameter_registration_hook(look)
    yield
    hook.remove()


@pytest.mark.parametrize(("base", "text", "words"), COMPOSED, ids=[text[:40] for _, text, _ in COMPOSED])
def test_caught_while_composing(base: str, text: str, words: list[str], tmp_path: Path) -> None:
    lines = text if text.startswith("extends") else f"extends: {base}\n{text}"
    (tmp_path / "p.yaml").write_text(f"# one mistake\n{lines}" if text.startswith("extends") else lines)
    with pytest.raises(PresetError) as caught:
        compose(str(tmp_path / "p.yaml"))
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert "p.yaml:" in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(("base", "words", "said"), REHEARSED, ids=[" ".join(words) for _, words, _ in REHEARSED])
def test_caught_while_rehearsing(base: str, words: list[str], said: list[str]) -> None:
    with pytest.raises(VlmkitError) as caught:
        vlmkit.check(compose(base, *words))
    assert isinstance(caught.value, ShapeError | PresetError)
    assert not [word for word in said if word not in str(caught.value)], str(caught.value)
