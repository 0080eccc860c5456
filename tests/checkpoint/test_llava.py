"""Folders of LLaVA's authors, written here under their names from transformers' random models: the same model again."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("transformers")

import small
import theirs
from safetensors.torch import save_file
from small import Talk, clip, picture

import vlmkit
from vlmkit.checkpoint.paper import paper
from vlmkit.compose.folder import describe, format_of
from vlmkit.errors import CheckpointFormatError, CheckpointMismatchError, CheckpointSafetyError

NAMES = [  # llava-family.md 5.1 and 5.3: transformers' names in memory -> the authors'
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
    (r"^model\.(image|video)_tower\.", r"model.\1_tower.\1_tower."),
    (r"^model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^model\.language_model\.", "model."),
]
VIP = [(r"mm_projector\.(\d)", r"mm_projector.final_linear.\1"),
       (r"^model\.multi_modal_projector\.projector_layernorm", "model.mm_projector.clip_layernorm")]
KEEP = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "sliding_window", "tie_word_embeddings")

CLIP: dict[str, Any] = {
    "model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 1024,
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "unfreeze_mm_vision_tower": False,
}  # fmt: skip
PAIRS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # width, height
NEXT = CLIP | {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": PAIRS}
SIGLIP = CLIP | {"model_type": "llava_qwen", "mm_vision_tower": "/data/google/siglip-so400m-patch14-384",
                 "use_sliding_window": False, "max_window_layers": 28}
ONEVISION = SIGLIP | {
    "image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": "(1x1),...,(6x6)", "mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
}  # fmt: skip
VIDEO: dict[str, Any] = {key: value for key, value in CLIP.items() if key != "mm_vision_tower"} | {
    "mm_image_tower": "LanguageBind/LanguageBind_Image", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
    "image_aspect_ratio": "pad"}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": CLIP | {"image_aspect_ratio": "pad", "image_grid_pinpoints": None},
    "llava-crop": CLIP,
    "vip-llava": CLIP | {"mm_vision_tower": "clip_4layer_336", "image_aspect_ratio": "pad"},
    "next": NEXT,
    "next-mistral": NEXT | {"model_type": "llava_mistral"},
    "next-video": NEXT | {"model_type": "llava_llama", "mm_resampler_type": "spatial_pool", "mm_spatial_pool_stride": 2,
                          "mm_spatial_pool_mode": "average", "rope_scaling": {"factor": 2.5, "type": "linear"}},
    "interleave": SIGLIP,
    "onevision": ONEVISION,
    "onevision-tied": ONEVISION,
}  # fmt: skip
BASES = {"llava": "llava-1.5-7b", "llava-crop": "llava-1.5-7b", "vip-llava": "vip-llava-7b",
         "next": "llava-next-vicuna-7b", "next-mistral": "llava-next-mistral-7b", "next-video": "llava-next-video-7b",
         "interleave": "llava-interleave-qwen-7b", "onevision": "llava-onevision-qwen2-7b",
         "onevision-tied": "llava-onevision-qwen2-7b"}  # fmt: skip


def tensors(name: str) -> dict[str, torch.Tensor]:
    """Their tensors under the authors' names; a tied head is not written."""
    found = {}
    for key, tensor in theirs.model(name).state_dict().items():
        for pattern, new in [*NAMES, *(VIP if name == "vip-llava" else ())]:
            key = re.sub(pattern, new, key)
        found[key] = tensor.contiguous()
    if theirs.configuration(name).text_config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def config(name: str, **more: Any) -> dict[str, Any]:
    text = theirs.configuration(name).text_config.to_dict()
    said = {key: text[key] for key in KEEP if key in text}
    return said | {"rope_theta": text["rope_parameters"]["rope_theta"]} | CONFIGS.get(name, {}) | more


def words(name: str) -> list[str]:
    """What no file of theirs says: how small the tower is."""
    sizes = small.PRESETS[name][1]
    return [f"tower.options.{key}={value}" for key, value in sizes.items()]


def tokenizer(name: str) -> str:
    """Theirs knows no <image> and no <video>."""
    tree = json.loads(small.tokenizer(small.bos(name)))
    tree["added_tokens"] = [one for one in tree["added_tokens"] if one["content"] not in ("<image>", "<video>")]
    for word in ("<image>", "<video>"):
        del tree["model"]["vocab"][word]
    return json.dumps(tree)


def write(folder: Path, said: dict[str, Any], some: dict[str, torch.Tensor], words: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text(words or tokenizer("llava"))
    save_file(some, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> the authors' folder and transformers' folder of the same weights."""
    made: dict[str, tuple[Path, Path]] = {}

    def both(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            theirs.model(name).save_pretrained(root / "hf")
            theirs.reader(name).processor.save_pretrained(root / "hf")
            made[name] = write(root / "own", config(name), tensors(name), tokenizer(name)), root / "hf"
        return made[name]

    return both


def talk(name: str) -> list[dict[str, Any]]:
    if name in ("next-video", "onevision"):
        return Talk(("<image>\n<video>\nWhat is in it?",), (picture(48, 64, 1), clip(8))).messages
    return Talk(("See <image>\nand then <image>\n: same?",), (picture(70, 33, 2), picture(60, 200, 4))).messages


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_model_as_transformers_folder(pair: Any, name: str) -> None:
    own, hf = pair(name)
    assert format_of(own) == "llava"
    model, process = vlmkit.load(own, *words(name))
    other, read = vlmkit.load(hf)
    mine, their = model.state_dict(), other.state_dict()
    assert mine.keys() == their.keys()
    assert [key for key in mine if not torch.equal(mine[key], their[key])] == []

    one, two = process(talk(name)), read(talk(name))
    text = torch.ones(len(one.ids), dtype=torch.bool).index_fill(0, one.slots, False)
    assert torch.equal(one.slots, two.slots)
    assert torch.equal(one.ids[text], two.ids[text])
    assert not one.ids[~text].any()  # no placeholder in their vocabulary: 0, which is overwritten
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one.visuals, two.visuals, strict=True))
    said = [vlmkit.generate(model, use, talk(name), max_new_tokens=16, ignore_eos=True, details=True)
            for use in (process, read)]
    said.append(vlmkit.generate(other, read, talk(name), max_new_tokens=16, ignore_eos=True, details=True))
    assert said[0].ids == said[1].ids == said[2].ids


@pytest.mark.parametrize("name", CONFIGS)
def test_the_base_is_the_nearest_preset(pair: Any, name: str) -> None:
    """Chat, samplers and the like come from there; the words of the folder win."""
    preset, base = vlmkit.compose(str(pair(name)[0]), *words(name)), vlmkit.compose(BASES[name])
    assert preset.chat == base.chat
    assert (preset.video and preset.video.sampler) == (base.video and base.video.sampler)
    assert preset.projector == base.projector
    if name != "llava-crop":
        assert preset.image.packer == base.image.packer
    if name == "next":  # the same list, read as (width, height): the first of equals is another one
        assert preset.image.tiler.grids == ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
        assert {*preset.image.tiler.grids} == {*base.image.tiler.grids}
    elif name != "llava-crop":
        assert preset.image.tiler == base.image.tiler or name == "next-mistral" or name == "next-video"


def test_where_values_come_from_is_told(pair: Any) -> None:
    preset = vlmkit.compose(str(pair("next")[0]))
    assert preset._places["image.packer.use"] == "config.json"
    assert preset._places["chat.style"].startswith("llava-1.5-7b.yaml")


@pytest.mark.parametrize(("kind", "family", "more", "base"), [
    ("next", "llava", {"vocab_size": 64000}, "llava-next-34b"),
    ("next", "llava", {"vocab_size": 128256}, "llava-next-llama3-8b"),
    ("next", "llava_qwen", {}, "llava-next-72b"),
    ("llava", "llava_mistral", {}, "bakllava-v1"),
    ("llava", "llava_qwen", {}, "llava-next-72b"),  # CLIP's tower, as no interleave model has
    ("llava", "llava", {"mm_projector_type": "linear", "mm_vision_tower": "openai/clip-vit-large-patch14"},
     "llava-v1-7b"),
    ("next-video", "llava", {"vocab_size": 64000}, "llava-next-video-34b"),
    ("next-video", "llava_mistral", {}, "llava-next-video-7b-32k"),
    ("onevision", "llava_qwen", {"mm_newline_position": "grid"}, "llava-video-7b-qwen2"),
])  # fmt: skip
def test_bases(tmp_path: Path, kind: str, family: str, more: dict[str, Any], base: str) -> None:
    folder = write(tmp_path / "own", config(kind, model_type=family, **more), {})
    found, wanted = vlmkit.compose(str(folder)), vlmkit.compose(base)
    assert (found.chat.style, found.tower.model) == (wanted.chat.style, wanted.tower.model)
    assert found.tower.options == wanted.tower.options
    vlmkit.check(found)


FIELDS: list[tuple[str, dict[str, Any], str, Any]] = [  # folder, what its config says, field, value
    ("llava", {"mm_vision_select_feature": "cls_patch"}, "tower.prefix", "keep"),
    ("llava", {"mm_vision_select_feature": "slice_m25811_f6_patch"}, "tower.layer", (-2, -5, -8, -11, 6)),
    ("llava", {"mm_vision_select_layer": -1}, "tower.layer", -1),
    ("onevision", {"mm_vision_select_layer": -2}, "tower.layer", -1),  # of 26: theirs takes the last, whatever is said
    ("llava", {"mm_vision_tower": "openai/clip-vit-large-patch14"}, "tower.model",
     "vit_large_patch14_clip_quickgelu_224.openai"),
    ("llava", {"mm_projector_type": "mlp3x_gelu"}, "projector.depth", 3),
    ("llava", {"mm_projector_type": None}, "projector.use", "linear"),
    ("llava", {"image_aspect_ratio": "square"}, "image.tiler.fit", "crop"),
    ("interleave", {"image_aspect_ratio": "square"}, "image.tiler.fit", "squash"),
    ("llava", {"mm_use_im_start_end": True}, "chat.visual", ("<im_start>", "<im_end>")),
    ("llava", {"mm_use_im_patch_token": True}, "tokenizer.image", "<im_patch>"),
    ("next", {"image_grid_pinpoints": "[(336, 672), (672, 672)]"}, "image.tiler.grids", ((2, 1), (2, 2))),
    ("next", {"image_grid_pinpoints": "(1x1),...,(2x3)"}, "image.tiler.grids",
     ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2))),
    ("next", {"image_grid_pinpoints": "(1x1),...,(2x2)"}, "image.tiler.largest", (2, 2)),
    ("next", {"mm_patch_merge_type": "spatial"}, "image.packer.unpad", False),
    ("next", {"mm_patch_merge_type": "flat"}, "image.packer.use", "flat"),
    ("next", {"image_aspect_ratio": "anyres_max_4"}, "image.packer.budget", 4.0),
    ("onevision", {"image_aspect_ratio": "anyres"}, "image.packer.budget", None),
    ("onevision", {"mm_newline_position": "frame"}, "video.packer.newline", "frame"),
    ("onevision", {"mm_newline_position": "no_token"}, "video.packer.newline", "none"),
    ("onevision", {"mm_newline_position": "grid"}, "video.packer.newline", "row"),
    ("onevision", {"mm_newline_position": "grid"}, "chat.clip", vlmkit.compose("llava-video-7b-qwen2").chat.clip),
    ("onevision", {"mm_pooling_position": "before"}, "video.packer.when", "before"),
    ("onevision", {"add_faster_video": True, "faster_token_stride": 5, "mm_newline_position": "grid"},
     "video.packer.every", 5),
    ("next-video", {"mm_spatial_pool_mode": "max"}, "video.packer.pool", "max"),
    ("next-video", {"mm_spatial_pool_stride": 4}, "video.packer.stride", 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "more", "path", "wanted"), FIELDS)
def test_fields(tmp_path: Path, name: str, more: dict[str, Any], path: str, wanted: Any) -> None:
    found: Any = vlmkit.compose(str(write(tmp_path / "own", config(name, **more), {})))
    for step in path.split("."):
        found = getattr(found, step)
    assert found == wanted


@pytest.mark.parametrize(("name", "more", "said"), [
    ("llava", {"model_type": "llava_mpt"}, "model_type is 'llava_mpt'; vlmkit reads llava, llava_llama"),
    ("llava", {"mm_vision_tower": "facebook/dinov2-large"}, "mm_vision_tower is 'facebook/dinov2-large'"),
    ("llava", {"s2": True}, "mm_vision_tower is"),
    ("llava", {"mm_vision_select_feature": "slicefour_patch"}, "mm_vision_select_feature is 'slicefour_patch'"),
    ("llava", {"mm_projector_type": "mlp2x_res2x_gelu"}, "mm_projector_type is 'mlp2x_res2x_gelu'"),
    ("llava", {"mm_resampler_type": "qformer"}, "mm_resampler_type is 'qformer'; vlmkit knows None and 'spatial_pool'"),
    ("llava", {"image_aspect_ratio": "highres"}, "image_aspect_ratio is 'highres'"),
    ("next", {"image_aspect_ratio": "anyres_most"}, "image_aspect_ratio is 'anyres_most'"),
    ("next", {"mm_patch_merge_type": "unpad"}, "mm_patch_merge_type is 'unpad'"),
    ("next", {"image_grid_pinpoints": [[336, 700]]}, "image_grid_pinpoints holds [336, 700]"),
    ("next", {"image_grid_pinpoints": None}, "image_grid_pinpoints is None"),
    ("onevision", {"mm_newline_position": "everywhere"}, "mm_newline_position is 'everywhere'"),
    ("llava", {"mm_vision_tower": 7}, "mm_vision_tower is 7, wanted str"),
    ("llava", {"mm_image_tower": "LanguageBind/LanguageBind_Image"}, "mm_video_tower is None"),
])  # fmt: skip
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointFormatError, match=re.escape(said)) as error:
        vlmkit.compose(str(write(tmp_path / "own", config(name, **more), {})))
    assert error.value.where.endswith("config.json")


@pytest.mark.parametrize("name", ["llava", "onevision", "next-video", "video-llava"])
def test_a_config_of_nonsense_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    good = {**config(name), **(VIDEO if name == "video-llava" else {})}
    folder = write(tmp_path / "own", good, {})
    for key in good:
        for odd in (None, True, -1, 10**9, 0.5, "", "x", "(9x9)", [], [[]], [[336]], {}, {"a": []}):
            (folder / "config.json").write_text(json.dumps(good | {key: odd}))
            with suppress(vlmkit.VlmkitError):
                if format_of(folder):
                    describe(folder, format_of(folder))


def test_the_first_llava_is_spoken_to_by_its_name(tmp_path: Path) -> None:
    """llava-family.md 4.1: nothing but the name tells."""
    names = {"llava-llama-2-13b-chat": "llava_llama_2", "llava-v1-0719-336px": "llava_v1", "LLaVA-7B": "llava_v0"}
    for name, style in names.items():
        chat: Any = vlmkit.compose(str(write(tmp_path / name, config("llava", mm_projector_type="linear"), {}))).chat
        assert (chat.style, chat.visual) == (style, None)


def test_a_linear_projector(tmp_path: Path) -> None:
    some = {key: tensor for key, tensor in tensors("llava").items() if "mm_projector" not in key}
    some |= {"model.mm_projector.weight": torch.randn(32, 16), "model.mm_projector.bias": torch.randn(32)}
    folder = write(tmp_path / "own", config("llava", mm_projector_type="linear"), some)
    projector = vlmkit.load(folder, *words("llava"))[0].projector
    assert torch.equal(projector.linear.weight, some["model.mm_projector.weight"])
    assert torch.equal(projector.linear.bias, some["model.mm_projector.bias"])


def test_shards(pair: Any, tmp_path: Path) -> None:
    """Names may be split anywhere, q from k and v, too."""
    folder = write(tmp_path / "own", config("next"), {})
    (folder / "model.safetensors").unlink()
    shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for at, (name, tensor) in enumerate(tensors("next").items()):
        shards[at % 3][name] = tensor
    where = {}
    for at, shard in enumerate(shards, start=1):
        where |= dict.fromkeys(shard, file := f"model-{at:05}-of-00003.safetensors")
        save_file(shard, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    mine, their = (vlmkit.load(f, *w)[0].state_dict() for f, w in ((folder, words("next")), (pair("next")[1], ())))
    assert all(torch.equal(mine[key], their[key]) for key in mine)


def test_a_newline_that_nobody_lays_stays_on_disk(tmp_path: Path) -> None:
    """Interleave's files hold one (llava-family.md 5.3)."""
    some = tensors("interleave") | {"model.image_newline": torch.ones(32)}
    plan = paper(write(tmp_path / "own", config("interleave"), some, tokenizer("interleave")), *words("interleave"))
    assert "model.image_newline" in plan.origins[0].plan.spare


# --- parts of a model ---


def split(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tower as transformers saves it alone, and the rest."""
    whole = tensors(name)
    before = "model.vision_tower.vision_tower."
    seen = {key.removeprefix(before): whole.pop(key) for key in [*whole] if key.startswith(before)}
    return seen, whole


def tower_alone(folder: Path, name: str) -> Path:
    said = theirs.configuration(name).vision_config.to_dict()
    return write(folder, said, split(name)[0])


def test_without_its_tower_the_lines_to_write_are_told(pair: Any, tmp_path: Path) -> None:
    """LLaVA-1.5's own files hold none. The lines work as they are told, with the tower's folder in its place."""
    folder = write(tmp_path / "own", config("next"), split("next")[1], tokenizer("next"))
    with pytest.raises(CheckpointMismatchError, match="holds no tower") as error:
        vlmkit.load(folder, *words("next"))
    told = yaml.safe_load(error.value.hint.partition("\n")[2])["weights"]
    assert told == [{"from": str(folder), "format": "llava", "into": ["projector", "decoder", "separators"]},
                    {"from": "openai/clip-vit-large-patch14-336", "format": "clip", "into": ["tower"]}]
    told[1]["from"] = str(tower_alone(tmp_path / "clip", "next"))
    model, _ = vlmkit.load(folder, *words("next"), f"weights={json.dumps(told)}")
    mine, their = model.state_dict(), vlmkit.load(pair("next")[1])[0].state_dict()
    assert all(torch.equal(mine[key], their[key]) for key in mine)


def test_a_projector_by_itself(pair: Any, tmp_path: Path) -> None:
    """`mm_projector.safetensors` beside nothing: a weights entry of its own."""
    alone = tmp_path / "projector"
    alone.mkdir()
    drawn = {key: torch.randn_like(tensor) for key, tensor in tensors("llava").items() if "mm_projector" in key}
    save_file(drawn, alone / "mm_projector.safetensors")
    own = pair("llava")[0]
    entries = [{"from": str(own), "format": "llava", "into": ["tower", "decoder"]},
               {"from": str(alone), "format": "llava", "into": ["projector"]}]
    model, _ = vlmkit.load(own, *words("llava"), f"weights={json.dumps(entries)}")
    assert torch.equal(model.projector.layers[2].weight, drawn["model.mm_projector.2.weight"])
    whole = vlmkit.load(own, *words("llava"))[0].state_dict()
    assert all(torch.equal(whole[key], tensor) for key, tensor in model.state_dict().items() if "projector" not in key)
    with pytest.raises(CheckpointMismatchError, match="holds no tower and no decoder") as error:
        vlmkit.load(own, *words("llava"), f"weights=[{{from: {alone}, format: llava}}]")
    assert "into: [projector]" in error.value.hint


def test_a_pickled_projector_is_refused_with_the_way_out(pair: Any, tmp_path: Path) -> None:
    alone = tmp_path / "projector"
    alone.mkdir()
    torch.save({"model.mm_projector.0.weight": torch.zeros(2)}, alone / "mm_projector.bin")
    entry = f"weights=[{{from: {alone}, format: llava, into: [projector]}}]"
    with pytest.raises(CheckpointSafetyError, match=r"mm_projector\.bin") as error:
        vlmkit.load(pair("llava")[0], *words("llava"), entry)
    assert "weights_only=True" in error.value.hint


def test_adapters_and_deltas_are_recognised_and_refused(tmp_path: Path) -> None:
    lora = write(tmp_path / "llava-lora", config("llava"), {})
    (lora / "adapter_config.json").write_text("{}")
    other = tmp_path / "adapter"
    other.mkdir()
    (other / "adapter_config.json").write_text("{}")
    for folder in (lora, other):
        with pytest.raises(CheckpointFormatError, match="LoRA adapter") as error:
            vlmkit.load(folder)
        assert "merge it first" in error.value.hint
    named = write(tmp_path / "LLaVA-7b-delta-v0", config("llava"), {})
    cached = write(tmp_path / "models--x--LLaVA-13b-delta-v1" / "snapshots" / "abc", config("llava"), {})
    for folder in (named, cached):
        with pytest.raises(CheckpointFormatError, match="differences to LLaMA") as error:
            vlmkit.load(folder)
        assert "apply_delta" in error.value.hint
    vlmkit.compose(str(write(tmp_path / "delta" / "river", config("llava"), {})))  # a folder above may have any name


# --- Video-LLaVA, with attention over time ---

def test_video_llava(tmp_path: Path) -> None:
    """Layout E of llava-family.md 5.1, with the tensors of 1.12 in every block of the clips' tower."""
    some, noise = tensors("video-llava"), torch.Generator().manual_seed(0)
    shapes = {"temporal_embedding": (1, 8, 16),
              **{f"temporal_layer_norm1.{leaf}": (16,) for leaf in ("weight", "bias")},
              **{f"temporal_attn.{x}_proj.weight": (16, 16) for x in ("q", "k", "v", "out")},
              **{f"temporal_attn.{x}_proj.bias": (16,) for x in ("q", "k", "v", "out")}}  # fmt: skip
    blocks = [f"model.video_tower.video_tower.encoder.layers.{i}." for i in range(3)]
    for block in blocks:
        some |= {block + name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    folder = write(tmp_path / "own", config("llava") | VIDEO, some, tokenizer("llava"))
    (folder / "config.json").write_text(json.dumps({**config("video-llava"), **VIDEO}))
    sizes = [*words("video-llava"), *(f"video.{word}" for word in words("video-llava"))]

    model, process = vlmkit.load(folder, *sizes)
    wanted = theirs.weights("video-llava")
    found = model.state_dict()
    own = {key for key in found if ".time." in key}
    assert len(own) == 2 * 7
    assert all(torch.equal(found[key], wanted[key]) for key in found.keys() - own)
    for i, block in enumerate(blocks[:2]):
        here = f"video.tower.vit.blocks.{i}.time."
        joined = torch.cat([some[f"{block}temporal_attn.{x}_proj.weight"] for x in "qkv"])
        assert torch.equal(found[f"{here}attn.qkv.weight"], joined)
        assert torch.equal(found[f"{here}embedding"], some[f"{block}temporal_embedding"])
        assert torch.equal(found[f"{here}norm.bias"], some[f"{block}temporal_layer_norm1.bias"])
        assert torch.equal(found[f"{here}attn.proj.bias"], some[f"{block}temporal_attn.out_proj.bias"])

    messages = Talk(("<image>\n<video>\nWhat is in it?",), (picture(48, 64, 1), clip(8))).messages
    assert len(process(messages).slots) == 16 + 8 * 17
    said = vlmkit.generate(model, process, messages, max_new_tokens=4, ignore_eos=True)
    named, own = vlmkit.load("video-llava-7b", *sizes, f"tokenizer.from={folder}",
                             f"weights=[{{from: {folder}, format: llava}}]")  # the shipped preset says the same
    assert all(torch.equal(found[key], tensor) for key, tensor in named.state_dict().items())
    assert vlmkit.generate(named, own, messages, max_new_tokens=4, ignore_eos=True) == said
    with pytest.raises(vlmkit.ShapeError, match="exactly 8 frames together; this is a clip of 4"):
        vlmkit.load(folder, *sizes, "video.sampler.frames=4")[1](messages)


def test_towers_without_attention_over_time_do_not_take_its_weights(tmp_path: Path) -> None:
    some = tensors("video-llava")
    some["model.video_tower.video_tower.encoder.layers.0.temporal_embedding"] = torch.zeros(1, 8, 16)
    folder = write(tmp_path / "own", {**config("video-llava"), **VIDEO}, some, tokenizer("llava"))
    plain = "video.tower={use: timm, model: vit_large_patch14_clip_224.openai, layer: -2, prefix: keep}"
    sizes = [*words("video-llava"), plain, *(f"video.{word}" for word in words("video-llava"))]
    with pytest.raises(CheckpointMismatchError, match=r"left over in model(?s:.*)temporal_embedding"):
        vlmkit.load(folder, *sizes)


@pytest.mark.parametrize("kind", ["llava", "language", "clip", "timm"])
def test_these_layouts_are_read_only(folder: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(vlmkit.PresetError, match=f"checkpoints of format {kind} are read, not written") as error:
        vlmkit.export(*vlmkit.load(folder), tmp_path / "out", format=kind)
    assert "llava-hf" in error.value.hint
    assert not (tmp_path / "out").exists()
