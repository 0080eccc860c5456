"""Every shipped preset: it composes, reads back, and is wired as the family reference says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlmkit
from vlmkit.compose.bind import compose
from vlmkit.compose.find import every
from vlmkit.compose.schema import schema
from vlmkit.errors import PresetValueError

SHIPPED = sorted(found.name for found in every() if found.owner == "vlmkit")
MODELS = [name for name in SHIPPED if "/" not in name]
FAMILY = [name for name in MODELS if name != "tiny"]
FOLDER = next(found.folder for found in every() if found.owner == "vlmkit")

CLIP_336 = ("vit_large_patch14_clip_quickgelu_336.openai", -2, "drop")
CLIP_224 = ("vit_large_patch14_clip_quickgelu_224.openai", -2, "drop")
SIGLIP = ("vit_so400m_patch14_siglip_384.webli", -1, "drop")
VIP = (CLIP_336[0], (-2, -5, -8, -11, 6), "drop")
GELU_224 = ("vit_large_patch14_clip_224.openai", -2, "drop")

# reference 1.5 (rows of the embedding), 1.7 (wiring), 4 (prompts)
WIRING = {
    # name: tower, projector, image packer, video packer, decoder, rows, chat
    "llava-v1-7b": (CLIP_224, "linear", "flat", None, "llama-7b", 32003, "llava_v0"),
    "llava-1.5-7b": (CLIP_336, "mlp", "flat", None, "vicuna-7b-v1.5", 32064, "vicuna_v1"),
    "llava-1.5-13b": (CLIP_336, "mlp", "flat", None, "vicuna-13b-v1.5", 32064, "vicuna_v1"),
    "bakllava-v1": (CLIP_336, "mlp", "flat", None, "mistral-7b-v0.1", 32064, "mistral_instruct"),
    "vip-llava-7b": (VIP, "mlp", "flat", None, "vicuna-7b-v1.5", 32064, "llava_v0"),
    "vip-llava-13b": (VIP, "mlp", "flat", None, "vicuna-13b-v1.5", 32064, "llava_v0"),
    "llava-next-mistral-7b": (CLIP_336, "mlp", "anyres", None, "mistral-7b-v0.2", 32064, "mistral_instruct"),
    "llava-next-vicuna-7b": (CLIP_336, "mlp", "anyres", None, "vicuna-7b-v1.5", 32064, "vicuna_v1"),
    "llava-next-vicuna-13b": (CLIP_336, "mlp", "anyres", None, "vicuna-13b-v1.5", 32064, "vicuna_v1"),
    "llava-next-34b": (CLIP_336, "mlp", "anyres", None, "yi-34b", 64064, "chatml_direct"),
    "llava-next-llama3-8b": (CLIP_336, "mlp", "anyres", None, "llama3-8b", 128320, "llava_llama_3"),
    "llava-next-72b": (CLIP_336, "mlp", "anyres", None, "qwen1.5-72b", 152064, "qwen_1_5"),
    "llava-next-110b": (CLIP_336, "mlp", "anyres", None, "qwen1.5-110b", 152064, "qwen_1_5"),
    "llava-next-video-7b": (CLIP_336, "mlp", "anyres", "frames", "vicuna-7b-v1.5", 32064, "vicuna_v1"),
    "llava-next-video-7b-dpo": (CLIP_336, "mlp", "anyres", "frames", "vicuna-7b-v1.5", 32064, "vicuna_v1"),
    "llava-next-video-7b-32k": (CLIP_336, "mlp", "anyres", "frames", "mistral-7b-v0.2", 32064, "mistral_instruct"),
    "llava-next-video-34b": (CLIP_336, "mlp", "anyres", "frames", "yi-34b", 64064, "chatml_direct"),
    "llava-next-video-34b-dpo": (CLIP_336, "mlp", "anyres", "frames", "yi-34b", 64064, "chatml_direct"),
    "llava-next-video-32b-qwen": (SIGLIP, "mlp", "anyres", "frames", "qwen1.5-32b", 152064, "qwen_1_5"),
    "llava-interleave-qwen-0.5b": (SIGLIP, "mlp", "flat", "flat", "qwen1.5-0.5b", 152000, "interleave"),
    "llava-interleave-qwen-7b": (SIGLIP, "mlp", "flat", "flat", "qwen1.5-7b", 152000, "interleave"),
    "llava-interleave-qwen-7b-dpo": (SIGLIP, "mlp", "flat", "flat", "qwen1.5-7b", 152000, "interleave"),
    "llava-video-7b-qwen2": (SIGLIP, "mlp", "anyres", "frames", "qwen2-7b", 152064, "qwen_1_5"),
    "video-llava-7b-hf": (CLIP_224, "mlp", "flat", "flat", "vicuna-7b-v1.5", 32064, "vicuna_v1"),
    "video-llava-7b": (GELU_224, "mlp", "flat", "flat", "vicuna-7b-v1.5", 32000, "llava_v1"),
    **{f"llava-onevision-qwen2-{size}{stage}":
       (SIGLIP, "mlp", "anyres", "frames", f"qwen2-{size}", 152000 if size == "0.5b" else 152128, "qwen_1_5")
       for size in ("0.5b", "7b", "72b") for stage in ("", "-si", "-ov", "-chat") if size + stage != "0.5b-chat"},
}  # fmt: skip

# reference 1.7: all parameters of the published model, those it never runs included
PARAMETERS = {
    "llava-1.5-7b": 7_063_427_072, "llava-1.5-13b": 13_351_494_656,
    "vip-llava-7b": 7_080_214_528, "vip-llava-13b": 13_372_476_416,
    "llava-next-mistral-7b": 7_566_747_648, "llava-next-vicuna-7b": 7_063_431_168,
    "llava-next-vicuna-13b": 13_351_499_776, "llava-next-34b": 34_752_083_968, "llava-next-video-34b": 34_752_083_968,
    "llava-next-llama3-8b": 8_355_276_800, "llava-next-72b": 72_666_949_632, "llava-next-110b": 111_588_943_872,
    "llava-next-video-7b": 7_063_431_168, "llava-onevision-qwen2-0.5b": 893_675_552,
    "llava-onevision-qwen2-7b": 8_030_807_584, "llava-onevision-qwen2-72b": 73_181_570_592,
    "llava-interleave-qwen-0.5b": 864_031_264, "llava-interleave-qwen-7b": 8_141_100_576,
    "video-llava-7b-hf": 7_366_279_168,
    "video-llava-7b": 7_366_279_168 - 2 * 64 * 4096 + 101_007_360,  # no spare rows; 1.12: attention over time
}  # fmt: skip


def test_every_row_of_the_matrix_is_shipped() -> None:
    assert set(WIRING) <= set(FAMILY)


@pytest.mark.parametrize("name", MODELS)
def test_it_composes_and_reads_back_whole(name: str, tmp_path: Path) -> None:
    preset = compose(name)
    assert preset.name == name
    assert preset.about
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset.dump(), sort_keys=False, allow_unicode=True))
    assert compose(str(tmp_path)) == preset


@pytest.mark.parametrize("name", WIRING)
def test_it_is_wired_as_the_reference_says(name: str) -> None:
    preset: Any = compose(name)
    tower, projector, image, video, decoder, rows, chat = WIRING[name]
    assert (preset.tower.model, preset.tower.layer, preset.tower.prefix) == tower
    if tower is SIGLIP:
        assert preset.tower.options == {"depth": 26, "act_layer": "gelu_tanh", "global_pool": ""}
    assert (preset.projector.use, preset.image.packer.use) == (projector, image)
    assert (preset.video.packer.use if preset.video else None) == video
    assert (preset.decoder.size, preset.decoder.vocab, preset.chat.style) == (decoder, rows, chat)
    if projector == "mlp":
        assert (preset.projector.depth, preset.projector.act, preset.projector.bias) == (2, "gelu", True)
        assert preset.projector.norm == (1e-5 if name.startswith("vip") else None)
    assert all(weights.into == () for weights in preset.weights)


PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # height, width


@pytest.mark.parametrize("name", [name for name in WIRING if name.startswith("llava-next")])
def test_next_tiles(name: str) -> None:
    image: Any = compose(name).image
    assert [(rows * 336, cols * 336) for rows, cols in image.tiler.grids] == PINPOINTS
    assert image.tiler.together == "tiles"
    assert (image.packer.unpad, image.packer.newline, image.packer.budget) == (True, "row", None)


@pytest.mark.parametrize("name", [name for name in WIRING if "onevision" in name])
def test_onevision(name: str) -> None:
    preset: Any = compose(name)
    image, video = preset.image, preset.video
    assert (image.tiler.largest, image.tiler.together) == ((6, 6), "square")
    assert (image.packer.unpad, image.packer.newline, image.packer.budget) == (True, "row", 9)
    assert (video.tiler.fit, video.packer.pool, video.packer.stride, video.packer.when, video.packer.newline) == (
        "squash", "bilinear", 2, "after", "end")  # fmt: skip
    stage = {"si": "si", "chat": "ov-chat"}.get(name.rsplit("-", 1)[-1], "ov")
    size = name.split("-")[3]
    assert preset.weights[0].from_ == f"llava-hf/llava-onevision-qwen2-{size}-{stage}-hf"


@pytest.mark.parametrize("name", [name for name in WIRING if name.startswith("llava-next-video") and "32b" not in name])
def test_next_video(name: str) -> None:
    preset: Any = compose(name)
    video = preset.video
    assert (video.tiler.fit, video.packer.pool, video.packer.stride, video.packer.when, video.packer.newline) == (
        "crop", "average", 2, "before", "none")  # fmt: skip
    stretched = name in ("llava-next-video-7b", "llava-next-video-7b-dpo")  # reference 1.11
    assert (preset.decoder.rope.type, preset.decoder.rope.factor) == (("linear", 2.5) if stretched else ("none", 1.0))
    assert preset.decoder.context == {"7b": 8192, "7b-dpo": 8192, "7b-32k": 32768}.get(name[17:], 4096)


def test_video_llava_has_two_towers() -> None:
    preset: Any = compose("video-llava-7b-hf")
    assert (preset.video.tower.model, preset.video.tower.prefix) == (preset.tower.model, "keep")
    assert preset.video.projector is None
    own: Any = compose("video-llava-7b").video
    assert (own.tower.use, own.tower.model, own.tower.frames) == ("temporal", GELU_224[0], own.sampler.frames)


UNTOLD = ["bakllava-v1", "llava-v1-7b", "llava-next-video-32b-qwen", "llava-video-7b-qwen2"]


@pytest.mark.parametrize("name", [*PARAMETERS, *UNTOLD])
def test_it_fits_together_and_has_every_parameter(name: str) -> None:
    report = vlmkit.check(compose(name))
    if name in PARAMETERS:
        assert sum(report.parameters.values()) == PARAMETERS[name]
    assert report.parameters["decoder"] > 400_000_000


def test_a_run_lies_over_a_preset(tmp_path: Path) -> None:
    run: Any = compose("tiny", "runs/tiny", "steps=7", "needs=[]")
    assert (run.name, run.steps, run.data.use, run.train["decoder"].rate) == ("tiny", 7, "scenes", 4e-3)
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(run.dump(), sort_keys=False))
    assert compose(str(tmp_path)) == run
    with pytest.raises(PresetValueError, match="put a preset before it"):
        compose("runs/tiny")


def test_the_schema_is_current() -> None:
    here = json.loads((FOLDER / "schema.json").read_text())
    assert here == json.loads(json.dumps(schema())), "python -m vlmkit.compose.schema > presets/schema.json"


def fits(value: Any, rule: dict[str, Any], defs: dict[str, Any]) -> bool:
    """As much of JSON Schema as the generator writes."""
    import re

    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
             "null": type(None)}  # fmt: skip
    if "$ref" in rule and not fits(value, defs[rule["$ref"].removeprefix("#/$defs/")], defs):
        return False
    if "type" in rule and (not isinstance(value, types[rule["type"]])
                           or (isinstance(value, bool) and rule["type"] in ("integer", "number"))):  # fmt: skip
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    if "const" in rule and value != rule["const"]:
        return False
    if "anyOf" in rule and not any(fits(value, arm, defs) for arm in rule["anyOf"]):
        return False
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        return False
    if isinstance(value, int | float) and value < rule.get("minimum", value):
        return False
    if isinstance(value, list) and "items" in rule and not all(fits(item, rule["items"], defs) for item in value):
        return False
    if isinstance(value, dict):
        known = rule.get("properties", {})
        if any(not fits(item, known[key], defs) for key, item in value.items() if key in known):
            return False
        if rule.get("additionalProperties") is False and set(value) - set(known):
            return False
        for arm in rule.get("allOf", ()):
            chosen = arm["if"]
            applies = set(chosen["required"]) <= set(value) and fits(value, chosen, defs)
            if applies and not fits(value, arm["then"], defs):
                return False
    return True


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_takes_every_shipped_file(path: Path) -> None:
    rules = json.loads((FOLDER / "schema.json").read_text())
    assert fits(yaml.safe_load(path.read_text()), rules, rules["$defs"])


@pytest.mark.parametrize(("text", "taken"), [
    ("projector: resampler", True),
    ("projector: {use: mlp, depth: '${image.packer.depth}'}", True),
    ("video: null", True),
    ("extends: [a, runs/b]\nprojector: {depth: 3}", True),
    ("video: {tower: '${tower}'}", True),
    ("image: {tiler: {use: anyres, largest: ['${a.b}', 6]}}", True),
    ("projector: resempler", False),
    ("projector: {use: mlp, dept: 2}", False),
    ("projector: {use: mlp, depth: two}", False),
    ("projector: {use: mlp, depth: '${oc.env:HOME}'}", False),
    ("projektor: mlp", False),
    ("weights: [{from: a, format: b, onto: tower}]", False),
])  # fmt: skip
def test_the_schema_tells_good_from_bad(text: str, taken: bool) -> None:
    rules = schema()
    assert fits(yaml.safe_load(text), rules, rules["$defs"]) is taken
