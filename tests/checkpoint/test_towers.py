"""Vision towers by themselves, saved by transformers and by timm, as the tower of a preset."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import small
import timm
import transformers
from safetensors.torch import load_file, save_file

import vlmkit
from vlmkit.checkpoint.load import fill
from vlmkit.checkpoint.paper import Paper, paper
from vlmkit.compose.folder import describe, format_of
from vlmkit.errors import CheckpointFormatError, CheckpointMismatchError, CheckpointSafetyError, PresetError
from vlmkit.model.assemble import assemble
from vlmkit.parts.towers.timm import normalise

SEEN = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14}  # fmt: skip
READ = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
DECODER = "decoder={size: null, width: 32, layers: 1, heads: 2, kv_heads: 1, ffn: 48, vocab: 64, context: 64}"
CLIP, SIGLIP = ("llava-1.5-7b", "tower.options.depth=3"), ("llava-interleave-qwen-0.5b", "tower.options.depth=2")


def save(folder: Path, kind: str) -> Any:
    """A random CLIP or SigLIP, alone or with its text side; gives back its vision tower."""
    family = kind.removesuffix("Vision")
    seen = getattr(transformers, f"{family}VisionConfig")(**SEEN)
    if family != kind:
        made = getattr(transformers, f"{kind}Model")(seen)
    else:
        read = getattr(transformers, f"{family}TextConfig")(**READ)
        made = getattr(transformers, f"{family}Model")(
            getattr(transformers, f"{family}Config")(vision_config=seen.to_dict(), text_config=read.to_dict()))
    small.scatter(made, 5)
    made.eval().set_attn_implementation("sdpa")
    made.save_pretrained(folder)
    return getattr(made, "vision_model", made)


def entry(folder: Path, kind: str, into: str = "tower") -> str:
    return f"weights=[{{from: {folder}, format: {kind}, into: [{into}]}}]"


def model(*words: str) -> tuple[Any, Paper]:
    """As `load` makes it, without a tokenizer."""
    plan = paper(*words)
    made = assemble(plan.preset)
    fill(made, plan, "cpu", torch.float32, 0)
    return made.eval(), plan


def pixels(side: int, tiles: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["CLIPVision", "CLIP", "SiglipVision", "Siglip"])
def test_it_sees_as_in_transformers(tmp_path: Path, kind: str) -> None:
    """CLIP is read one block before its last; of SigLIP's 3 blocks (as of 27) one less is built, and the last read."""
    their, siglip = save(tmp_path / "own", kind), kind.startswith("Siglip")
    assert format_of(tmp_path / "own") == "clip"
    made, plan = model(*(SIGLIP if siglip else CLIP), DECODER, entry(tmp_path / "own", "clip"))
    assert (len(made.tower.blocks), made.tower.side) == (2, 56)
    with torch.inference_mode():
        found = made.tower(pixels(56)).tokens
        states = their(normalise(pixels(56), made.tower.mean, made.tower.std), output_hidden_states=True).hidden_states
    assert torch.equal(found, states[2][:, 0 if siglip else 1 :])
    assert plan.random == ["projector", "decoder"]
    assert len(plan.origins[0].plan.spare) > 10  # the last block, the final norm, the pooling head, the text side


def test_with_the_prefix_of_transformers_4(tmp_path: Path) -> None:
    save(tmp_path / "own", "CLIPVision")
    file = tmp_path / "own" / "model.safetensors"
    before, _ = model(*CLIP, DECODER, entry(tmp_path / "own", "clip"))
    stored = load_file(file)
    save_file({f"vision_model.{key}": t for key, t in stored.items()}
              | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, file)
    after, _ = model(*CLIP, DECODER, entry(tmp_path / "own", "clip"))
    assert all(torch.equal(a, b) for a, b in zip(before.tower.parameters(), after.tower.parameters(), strict=True))


def test_erf_or_quick_gelu_is_as_the_folder_says(tmp_path: Path) -> None:
    """The preset says quick_gelu; LanguageBind's towers have gelu, and nothing but their configuration tells."""
    their = save(tmp_path / "own", "CLIPVision")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    for layer in their.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    made, plan = model(*CLIP, DECODER, entry(tmp_path / "own", "clip"))
    assert "quickgelu" not in plan.preset.tower.model
    with torch.inference_mode():
        states = their(normalise(pixels(56), made.tower.mean, made.tower.std), output_hidden_states=True).hidden_states
        assert torch.equal(made.tower(pixels(56)).tokens, states[-2][:, 1:])


def test_one_tower_for_pictures_and_another_for_clips(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", "CLIPVision"), save(tmp_path / "two", "CLIP")
    lines = [{"from": str(tmp_path / name), "format": "clip", "into": [into]}
             for name, into in (("one", "tower"), ("two", "video.tower"))]
    made, plan = model("video-llava-7b-hf", "tower.options.depth=3", "video.tower.options.depth=3", DECODER,
                       f"weights={json.dumps(lines)}")
    assert plan.random == ["projector", "decoder"]
    assert plan.preset.video.tower.options["embed_dim"] == 16
    for tower, their in ((made.tower, one), (made.video.tower, two)):
        assert torch.equal(tower.vit.patch_embed.proj.weight, their.embeddings.patch_embedding.weight)


def test_a_depth_that_is_not_there(tmp_path: Path) -> None:
    """How deep a tower is read is the preset's business: what is missing is told."""
    save(tmp_path / "own", "CLIPVision")
    with pytest.raises(CheckpointMismatchError, match=r"missing in tower:\n +tower\.vit\.blocks\.3\."):
        paper("llava-1.5-7b", "tower.options.depth=5", DECODER, entry(tmp_path / "own", "clip"))


def test_a_tower_that_the_user_shaped_is_not_bent(tmp_path: Path) -> None:
    save(tmp_path / "own", "CLIPVision")
    with pytest.raises(CheckpointMismatchError, match="of another shape or kind in tower"):
        paper(*CLIP, "tower.options.embed_dim=32", DECODER, entry(tmp_path / "own", "clip"))


@pytest.mark.parametrize(("change", "said"), [
    ({"hidden_act": "relu"}, "hidden_act is 'relu'"), ({"num_channels": 1}, "num_channels is 1"),
    ({"hidden_size": "16"}, "hidden_size is '16'"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["CLIPVision", "CLIP"])
def test_what_the_tower_cannot_do_is_refused(tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    save(tmp_path / "own", kind)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (config if kind == "CLIPVision" else config["vision_config"]).update(change)
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointFormatError, match=said) as error:
        paper(*CLIP, DECODER, entry(tmp_path / "own", "clip"))
    assert ("vision_config." in str(error.value)) is (kind == "CLIP")


@pytest.mark.parametrize("kind", ["clip", "timm"])
def test_a_config_of_nonsense_is_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "own" / "config.json"
    if kind == "clip":
        save(tmp_path / "own", "CLIP")
    else:
        keep(tmp_path / "own", "vit_tiny_patch16_224", **VIT)
    good = json.loads(file.read_text())
    for inside in (None, "vision_config", "pretrained_cfg", "model_args"):
        for key in good.get(inside, {}) if inside else good:
            for odd in (None, True, -1, 10**9, 0.5, "", "x", [], [[]], {}, {"a": []}):
                file.write_text(json.dumps(good | ({inside: good[inside] | {key: odd}} if inside else {key: odd})))
                with suppress(vlmkit.VlmkitError):
                    if format_of(file.parent):
                        describe(file.parent, format_of(file.parent))


# --- timm ---

VIT = {"embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 28}


def keep(folder: Path, name: str, **args: Any) -> Any:
    made = timm.create_model(name, **args).eval()
    small.scatter(made, 7)
    timm.models.save_for_hf(made, folder, model_args=args, safe_serialization=True)
    return made


def test_timms_own_folder(tmp_path: Path) -> None:
    """Shape and statistics are its own; the layer is the preset's."""
    their = keep(tmp_path / "own", "vit_tiny_patch16_224", **VIT | {"img_size": 32})
    assert format_of(tmp_path / "own") == "timm"
    made, plan = model(*CLIP, DECODER, entry(tmp_path / "own", "timm"))
    assert (plan.preset.tower.model, made.tower.mean, made.tower.side) == ("vit_tiny_patch16_224", (0.5, 0.5, 0.5), 32)
    with torch.inference_mode():
        wanted = their.forward_intermediates(normalise(pixels(32), (0.5,) * 3, (0.5,) * 3), indices=[-2], norm=False,
                                             output_fmt="NLC", intermediates_only=True)[0]
        assert torch.equal(made.tower(pixels(32)).tokens, wanted)


def test_a_convolution(tmp_path: Path) -> None:
    their = keep(tmp_path / "own", "test_convnext")
    made, plan = model("llava-1.5-7b", "tower.model=test_convnext", "tower.layer=-1", DECODER,
                       entry(tmp_path / "own", "timm"))
    assert plan.preset.tower.model == "test_convnext"
    assert describe(tmp_path / "own", "timm").layers[0][1]["tower"]["side"] == made.tower.side == 160
    with torch.inference_mode():
        wanted = their.forward_intermediates(normalise(pixels(160), made.tower.mean, made.tower.std), indices=[-1],
                                             norm=False, intermediates_only=True)[0]
        assert torch.equal(made.tower(pixels(160)).map, wanted)


def test_clips_trained_with_quick_gelu_stay_so(tmp_path: Path) -> None:
    """Their folders name the architecture with gelu; timm's list of weights says which were trained with quick_gelu."""
    sizes = VIT | {"img_size": 28}
    keep(tmp_path / "quick", "vit_large_patch14_clip_336.openai", **sizes)
    keep(tmp_path / "plain", "vit_large_patch14_clip_336.laion2b_ft_in12k_in1k", **sizes)
    names = [model(*CLIP, DECODER, entry(tmp_path / name, "timm"))[1].preset.tower.model for name in ("quick", "plain")]
    assert names == ["vit_large_patch14_clip_quickgelu_336.openai", "vit_large_patch14_clip_336"]


def test_every_such_clip_of_timm_is_found() -> None:
    """Where timm notes that weights want quick_gelu, it lists a model with it under the same tag."""
    noted = [n for n in timm.list_models(pretrained=True) if "quickgelu" not in n
             and "natively QuickGELU" in str(timm.get_pretrained_cfg(n).notes)]
    assert len(noted) > 10
    listed = {*timm.list_pretrained("*quickgelu*")}
    assert {n.replace("_clip_", "_clip_quickgelu_") for n in noted} == listed


def test_bare_files_without_a_configuration(tmp_path: Path) -> None:
    """They say nothing about themselves: the preset says it all, and the names must be timm's."""
    made = timm.create_model("vit_large_patch14_clip_quickgelu_336", num_classes=0, **VIT)
    tmp_path.joinpath("own").mkdir()
    save_file(made.state_dict(), tmp_path / "own" / "anything.safetensors")
    sizes = [f"tower.options.{key}={value}" for key, value in VIT.items()]
    found, _ = model("llava-1.5-7b", *sizes, DECODER, entry(tmp_path / "own", "timm"))
    assert torch.equal(found.tower.vit.blocks[1].attn.qkv.weight, made.blocks[1].attn.qkv.weight)
    with pytest.raises(CheckpointMismatchError, match="29 missing in tower"):
        paper("llava-1.5-7b", *sizes, DECODER, entry(tmp_path / "own", "clip"))


def test_pickled_by_timm_is_refused_with_the_way_out(tmp_path: Path) -> None:
    made = timm.create_model("vit_tiny_patch16_224", **VIT)
    timm.models.save_for_hf(made, tmp_path / "own", model_args=VIT, safe_serialization=False)
    with pytest.raises(CheckpointSafetyError, match=r"pytorch_model\.bin") as error:
        paper(*CLIP, DECODER, entry(tmp_path / "own", "timm"))
    assert "weights_only=True" in error.value.hint


@pytest.mark.parametrize("kind", ["clip", "timm"])
def test_as_a_source_it_says_how_to_use_it(tmp_path: Path, kind: str) -> None:
    if kind == "clip":
        save(tmp_path / "own", "CLIP")
    else:
        keep(tmp_path / "own", "vit_tiny_patch16_224", **VIT)
    with pytest.raises(PresetError, match="is a tower only, no vision-language model") as error:
        vlmkit.load(tmp_path / "own")
    assert error.value.hint.endswith(entry(tmp_path / "own", kind))
