"""Vision models of transformers as towers: their own numbers, cut where they are read, and nobody's code run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from vlmkit_transformers import tower

import vlmkit
from vlmkit import registry
from vlmkit.errors import PresetError, PresetSafetyError, ShapeError, VlmkitError

HALF = (0.5, 0.5, 0.5)
PLAIN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
         "image_size": 56, "patch_size": 14}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "clip_vision_model": PLAIN, "siglip_vision_model": PLAIN, "dinov2": PLAIN, "dinov2_with_registers": PLAIN,
    "vit": PLAIN, "aimv2_vision_model": PLAIN, "dinov3_vit": PLAIN,
    "convnext": {"image_size": 64, "num_stages": 3, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1]},
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2],
             "window_size": 2},
}  # fmt: skip
PREFIX = {"clip_vision_model": 1, "dinov2": 1, "dinov2_with_registers": 5, "vit": 1, "dinov3_vit": 1}


def config(kind: str, **fields: Any) -> tower.Config:
    said = {"model_type": kind, **KINDS[kind]}
    return tower.Config(**{"config": said, "mean": HALF, "std": (0.2, 0.3, 0.4), **fields})


def pair(kind: str, **fields: Any) -> tuple[tower.Tower, Any]:
    """Our tower, and the whole model of transformers with the same weights, every one drawn anew."""
    theirs = config(kind).make("AutoModel").eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            drawn = torch.randn(weight.shape, generator=noise)
            weight.copy_(1 + drawn * 0.2 if "norm" in name and name.endswith("weight") else drawn * 0.3)
    ours = tower.build(config(kind, **fields)).eval()
    weights = theirs.state_dict()
    ours.model.load_state_dict({name: weights[name] for name in ours.model.state_dict()})
    return ours, theirs


def pixels(side: int, tiles: int = 2) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(256, (tiles, 3, side, side), dtype=torch.uint8, generator=noise)


def hidden(theirs: Any, seen: torch.Tensor) -> list[torch.Tensor]:
    """What transformers calls hidden_states, maps as rows of tokens; the first is before the first block."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (HALF, (0.2, 0.3, 0.4)))
    with torch.no_grad():
        states = theirs(pixel_values=(seen / 255 - mean) / std, output_hidden_states=True).hidden_states
    return [x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in states]


@pytest.mark.parity
@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_as_transformers_gives_it(kind: str, layer: int) -> None:
    ours, theirs = pair(kind, layer=layer, prefix="keep")
    seen = pixels(ours.side)
    with torch.no_grad():
        features = ours(seen)
    expected = hidden(theirs, seen)[layer]
    torch.testing.assert_close(features.tokens, expected, atol=1e-5, rtol=1e-5)
    assert features.prefix == PREFIX.get(kind, 0)
    assert features.rows * features.cols + features.prefix == expected.shape[1]
    assert ours.width == expected.shape[2]
    assert len(ours.blocks) == {-1: 3, -2: 2, 1: 1}[layer]


@pytest.mark.parity
def test_several_layers_are_joined_and_the_prefix_is_dropped() -> None:
    ours, theirs = pair("dinov2_with_registers", layer=(1, -1))
    seen = pixels(56)
    states = hidden(theirs, seen)
    with torch.no_grad():
        features = ours(seen)
    torch.testing.assert_close(features.tokens, torch.cat([states[1], states[3]], 2)[:, 5:], atol=1e-5, rtol=1e-5)
    assert (features.rows, features.cols, features.prefix, ours.width) == (4, 4, 0, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_built_is_counted_and_all_that_is_learns(kind: str) -> None:
    ours, theirs = pair(kind, layer=1, prefix="keep")
    built = sum(weight.numel() for weight in ours.parameters())
    assert built + ours.unused == sum(weight.numel() for weight in theirs.parameters())
    assert ours.unused > 0
    ours(pixels(ours.side)).tokens.square().sum().backward()
    idle = {name for name, weight in ours.named_parameters() if weight.grad is None}
    assert idle <= {"model.embeddings.mask_token"}  # for a training task of its own


@pytest.mark.parametrize("kind", KINDS)
def test_on_meta_first_then_with_weights(kind: str) -> None:
    ours, _ = pair(kind, layer=-2)
    seen = pixels(ours.side)
    with torch.device("meta"):
        other = tower.build(config(kind, layer=-2)).eval()
        planned = other(torch.empty_like(seen, device="meta"))
    other.load_state_dict(ours.state_dict(), assign=True)
    other.materialize()
    with torch.no_grad():
        assert torch.equal(other(seen).tokens, ours(seen).tokens)
        assert planned.tokens.shape == ours(seen).tokens.shape
    assert not [name for name, tensor in [*other.named_buffers(), *other.named_parameters()] if tensor.is_meta]


def test_a_folder_tells_its_numbers_and_is_needed_no_more(tmp_path: Path) -> None:
    vision = transformers.CLIPVisionConfig(**PLAIN)
    both = transformers.CLIPConfig(vision_config=vision.to_dict(), text_config={"vocab_size": 9})
    both.save_pretrained(tmp_path / "clip")
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(said))
    (tmp_path / "seen.yaml").write_text(
        "extends: llava-1.5-7b\ntower: {use: transformers, file: ./clip, layer: -2, config: {num_hidden_layers: 4}}\n")
    preset: Any = vlmkit.compose(str(tmp_path / "seen.yaml"), "decoder.layers=1")
    assert (preset.tower.mean, preset.tower.std, preset.tower.file) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None)
    assert preset.tower.config["model_type"] == "clip_vision_model"
    for file in sorted((tmp_path / "clip").iterdir()):
        file.unlink()
    report = vlmkit.check(preset)
    assert report.tokens(56, 56) == 16
    built = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PLAIN | {"num_hidden_layers": 4}))
    assert report.parameters["tower"] == sum(weight.numel() for weight in built.parameters())


def test_a_file_lies_beside_its_preset(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "far" / "out.yaml").write_text(
        "extends: llava-1.5-7b\ntower: {use: transformers, file: ../config.json}\n")
    with pytest.raises(PresetSafetyError, match="leads out"):
        vlmkit.compose(str(tmp_path / "far" / "out.yaml"))


def test_code_beside_a_config_never_runs(tmp_path: Path) -> None:
    (tmp_path / "modeling_evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    said = {"model_type": "dinov2", **PLAIN, "auto_map": {"AutoModel": "modeling_evil.Evil"},
            "trust_remote_code": True, "_attn_implementation": "someone/kernels", "torch_dtype": "float16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    built = tower.build(tower.Config(file=str(tmp_path), mean=HALF, std=HALF))
    assert type(built.model) is transformers.Dinov2Model
    assert built.model.config._attn_implementation == "sdpa"
    assert built.model.dtype == torch.float32
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("said", "told"), [
    ({"model_type": "dinov22"}, "did you mean .*dinov2"),
    ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "makes no 'timm_wrapper'"),
    ({"model_type": "dinov2", "num_hidden_layers": 100_000}, "at most 1024"),
    ({"model_type": "swin", "depths": [2, 2, 5000]}, "at most 1024"),
    ({"model_type": "dinov2", "hidden_size": 10**9}, "at most 10000000"),
    ({"model_type": "dpt", "use_pretrained_backbone": True}, "weights come from|they come from"),
    ({"model_type": "dinov2", "hidden_act": "nothing"}, "cannot make dinov2"),
    ({"hidden_size": 16}, "model_type"),
    ({"model_type": "vit", **PLAIN, "image_size": [56, 28]}, "tiles are square"),
    ({"model_type": "vit_mae", **PLAIN}, "not rows and columns"),  # shuffles its patches
    ({"model_type": "yolos", **PLAIN, "image_size": [56, 56]}, "not rows and columns"),  # tokens behind the patches
    ({"model_type": "pixtral", **PLAIN}, "not rows and columns"),  # all pictures in one row
])  # fmt: skip
def test_what_cannot_be_a_tower_says_why(said: dict[str, Any], told: str) -> None:
    with pytest.raises((VlmkitError, ValueError), match=told):
        tower.build(tower.Config(config=said, mean=HALF, std=HALF))


def test_normalisation_is_not_guessed() -> None:
    with pytest.raises(PresetError, match=r"tower\.mean"):
        vlmkit.compose("llava-1.5-7b", "tower={use: transformers, config: {model_type: vit}}")


def test_layers_that_are_not_there() -> None:
    with pytest.raises(PresetError, match="expected -3 to -1 or 1 to 3, got 4"):
        tower.build(config("vit", layer=4))
    with pytest.raises(ShapeError, match="different grids"):
        tower.build(config("swin", layer=(1, -1)))


def test_the_entry() -> None:
    entry = registry.find("tower", "transformers")
    assert entry.plugin == "transformers"
    made: Any = entry.config(**entry.example)
    assert made.build()(pixels(32)).tokens.shape == (2, 4, 16)


def test_the_preset() -> None:
    report = vlmkit.check("llava-1.5-7b-dinov2", "decoder.layers=1")
    assert report.tokens(480, 640) == 37 * 37
    assert report.parameters["tower"] == 304_368_640  # of facebook/dinov2-large
