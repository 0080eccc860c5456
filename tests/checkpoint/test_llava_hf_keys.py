"""Names of tensors: each layout that llava-hf folders were ever written in gives the same model."""

import copy
import json

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

import folders  # noqa: E402
import theirs  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.checkpoint.paper import paper  # noqa: E402
from vlmkit.errors import CheckpointMismatchError  # noqa: E402

TOWERS = ("vision_tower.", "image_tower.", "video_tower.")


def layout_a(name):
    """On disk before 5.x: with `vision_model.`"""
    tower, _, rest = name.partition(".")
    return f"{tower}.vision_model.{rest}" if name.startswith(TOWERS) else name


def layout_c(name):
    """In the memory of 5.x."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    inner = name.replace("language_model.model.", "language_model.", 1).removeprefix("model.")
    return f"model.{inner}"


def layout_c2(name):
    """In the memory of 4.52 to 4.57."""
    return layout_c(layout_a(name))


LAYOUTS = {"A": layout_a, "C": layout_c, "C2": layout_c2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = folders.save(name, tmp_path_factory.mktemp(name) / name)
        return made[name]

    return folder


def same(model, name):
    """Every tensor is the one that transformers' model holds; nothing but the unread blocks is left out."""
    wanted = theirs.weights(name)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[key]), key
    return wanted.keys() - model.state_dict().keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llava", "vip-llava", "next", "next-video", "onevision", "onevision-tied",
                                  "video-llava"])
def test_layouts(layout, name, saved, tmp_path):
    model, _ = vlmkit.load(folders.renamed(saved(name), tmp_path / "new", LAYOUTS[layout]))
    left = same(model, name)
    assert all(".norm." in key or ".blocks.2." in key or ".blocks.10." in key or key == "decoder.head.weight"
               for key in left), left


def test_what_transformers_writes_is_layout_b(saved):
    names = load_file(saved("next") / "model.safetensors").keys()
    assert {"language_model.model.norm.weight", "language_model.lm_head.weight", "image_newline",
            "vision_tower.encoder.layers.0.mlp.fc1.weight"} <= names
    same(vlmkit.load(saved("next"))[0], "next")


def test_buffers_of_old_files_are_left_alone(saved, tmp_path):
    old = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
           **{f"language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(2)},
           "language_model.model.rotary_emb.inv_freq": torch.rand(4)}
    folder = folders.renamed(saved("llava"), tmp_path / "old", layout_a, **old)
    same(vlmkit.load(folder)[0], "llava")


def test_pooling_head_of_siglip_is_left_alone(saved, tmp_path):
    head = {"vision_tower.vision_model.head.probe": torch.rand(1, 1, 16),
            "vision_tower.vision_model.head.attention.in_proj_weight": torch.rand(48, 16)}
    same(vlmkit.load(folders.renamed(saved("interleave"), tmp_path / "new", layout_a, **head))[0], "interleave")


@pytest.mark.parametrize("layout", [layout_a, layout_c])
def test_tied_with_a_copy_of_the_embedding(layout, saved, tmp_path):
    """The converters of OneVision 0.5b wrote the embedding twice."""
    embed = load_file(saved("onevision-tied") / "model.safetensors")["language_model.model.embed_tokens.weight"]
    copy = {layout("language_model.lm_head.weight"): embed.clone()}
    same(vlmkit.load(folders.renamed(saved("onevision-tied"), tmp_path / "new", layout, **copy))[0], "onevision-tied")


def test_tied_to_a_head_of_its_own(saved, tmp_path):
    """transformers warns and keeps both; nothing is lost here either, and nothing silently."""
    head = {"language_model.lm_head.weight": torch.rand(384, 32)}
    folder = folders.renamed(saved("onevision-tied"), tmp_path / "new", str, **head)
    with pytest.raises(CheckpointMismatchError, match=r"lm_head\.weight differ.*\n.*decoder\.tied=false"):
        vlmkit.load(folder)
    model, _ = vlmkit.load(folder, "decoder.tied=false")
    assert torch.equal(model.decoder.head.weight, head["language_model.lm_head.weight"])


def test_tied_and_only_the_head_is_stored(saved, tmp_path):
    same(vlmkit.load(folders.renamed(saved("onevision-tied"), tmp_path / "new", lambda name: name.replace(
        "language_model.model.embed_tokens", "language_model.lm_head")))[0], "onevision-tied")


def test_tied_is_said_by_either_configuration(saved, tmp_path):
    for at, changes in enumerate(({"tie_word_embeddings": False}, {"text_config__tie_word_embeddings": False})):
        folder = folders.renamed(saved("onevision-tied"), tmp_path / str(at), str)
        folders.edit(folder / "config.json", **changes)
        assert "decoder.head.weight" not in vlmkit.load(folder)[0].state_dict()


def test_shards(saved, tmp_path):
    folder = folders.save("next-video", tmp_path / "shards", max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert not (folder / "model.safetensors").exists()
    same(vlmkit.load(folder)[0], "next-video")


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_pool_of_a_convolution(prefix, saved, tmp_path):
    """LLaVA-NeXT-Video with `spatial_pool_mode: conv`, whose weights 5.x writes with `model.` before them."""
    config = theirs.configuration("next-video")
    config.spatial_pool_mode, config.spatial_pool_out_channels = "conv", 16
    model = theirs.transformers.LlavaNextVideoForConditionalGeneration(config).eval()
    theirs.small.scatter(model, 3)
    folder = folders.save("next-video", tmp_path / "first", weights=False)
    model.save_pretrained(folder)
    folder = folders.renamed(folder, tmp_path / "conv",
                             lambda name: name.replace("model.vision_resampler.", f"{prefix}vision_resampler."))
    found = vlmkit.load(folder, attention="eager")[0]
    assert torch.equal(found.video.packer.conv.weight, model.model.vision_resampler.pool.weight)
    assert torch.equal(found.video.packer.conv.bias, model.model.vision_resampler.pool.bias)


def test_numbers_are_read_as_they_are_stored(saved, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        folder = folders.save("llava", tmp_path / str(dtype), weights=False)
        copy.deepcopy(theirs.model("llava")).to(dtype).save_pretrained(folder)
        # the stored dtype is what counts, whatever the configuration says
        folders.edit(folder / "config.json", torch_dtype="float64", dtype="float64")
        assert {weight.dtype for weight in vlmkit.load(folder)[0].parameters()} == {dtype}


def test_what_is_missing_left_over_or_of_another_shape_is_told_at_once(saved, tmp_path):
    folder = folders.renamed(saved("next"), tmp_path / "new", lambda name: name.replace("image_newline", "newline"),
                             **{"language_model.model.layers.2.mlp.up_proj.weight": torch.rand(48, 32)})
    folders.edit(folder / "config.json", text_config__intermediate_size=47)
    with pytest.raises(CheckpointMismatchError) as caught:
        paper(folder)
    told = str(caught.value)
    assert "1 missing in separators:\n    separators.newline" in told
    assert "language_model.model.layers.2.mlp.up_proj.weight" in told
    assert "language_model.model.layers.0.mlp.up_proj.weight is [48, 32] F32, wanted [47, 32]" in told


def test_two_layouts_in_one_folder_are_refused(saved, tmp_path):
    names = load_file(saved("llava") / "model.safetensors")
    more = {layout_c(name): tensor for name, tensor in names.items() if "layers.0" in name}
    folder = folders.renamed(saved("llava"), tmp_path / "both", str, **more)
    with pytest.raises(CheckpointMismatchError, match="left over"):
        vlmkit.load(folder)
