"""Rehearsal: shapes and counts without weights, the published totals, and clear words when parts do not fit."""

import json
import random
import subprocess
import sys

import pytest
import small
import torch

import vlmkit
from vlmkit.errors import PresetError, ShapeError
from vlmkit.model.assemble import assemble
from vlmkit.model.rehearse import check_fit, count, rehearse
from vlmkit.types import Layout, Visual

TOTALS = {  # llava-family.md, 1.7
    "llava-1.5-7b": 7_063_427_072, "llava-1.5-13b": 13_351_494_656,
    "vip-llava-7b": 7_080_214_528, "vip-llava-13b": 13_372_476_416,
    "llava-next-mistral-7b": 7_566_747_648, "llava-next-vicuna-7b": 7_063_431_168,
    "llava-next-vicuna-13b": 13_351_499_776, "llava-next-34b": 34_752_083_968,
    "llava-next-llama3-8b": 8_355_276_800, "llava-next-72b": 72_666_949_632, "llava-next-110b": 111_588_943_872,
    "llava-next-video-7b": 7_063_431_168, "llava-next-video-7b-dpo": 7_063_431_168,
    "llava-next-video-7b-32k": 7_566_747_648, "llava-next-video-34b": 34_752_083_968,
    "llava-next-video-34b-dpo": 34_752_083_968,
    "llava-onevision-qwen2-0.5b": 893_675_552, "llava-onevision-qwen2-7b": 8_030_807_584,
    "llava-onevision-qwen2-72b": 73_181_570_592,
    "llava-interleave-qwen-0.5b": 864_031_264, "llava-interleave-qwen-7b": 8_141_100_576,
    "video-llava-7b-hf": 7_366_279_168,
}
CHECKED = """
import json, re, time
from pathlib import Path
import timm, torch, vlmkit
vlmkit.check("tiny")
found, known = {}, {}
for name in vlmkit.presets():
    if "/" in name:
        continue  # a recipe, not a model
    start = time.process_time()
    preset = vlmkit.compose(name)
    model = json.dumps([preset.dump()[key] for key in ("tower", "projector", "decoder", "image", "video")])
    if model not in known:  # some differ in their weights only
        known[model] = vlmkit.check(preset).total
    found[name] = known[model], time.process_time() - start
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # not the parent's
print(json.dumps([found, peak]))
"""


@pytest.fixture(scope="module")
def checked():
    """Every shipped preset, checked in a process of its own: name -> total, seconds; and the peak of its memory."""
    done = subprocess.run([sys.executable, "-c", CHECKED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_preset_is_checked_in_seconds_and_without_memory_for_weights(checked):
    found, peak = checked
    assert len(found) > 30
    assert TOTALS.keys() <= found.keys()
    assert peak < 1.5e9  # bytes; 110B weights in bfloat16 are 220e9
    slow = {name: seconds for name, (_, seconds) in found.items() if seconds >= 3}
    assert not slow


@pytest.mark.parametrize("name", TOTALS)
def test_total_is_the_published_one(checked, name):
    assert checked[0][name][0] == TOTALS[name]


def test_stages_of_onevision_are_one_model(checked):
    for size, stages in (("0.5b", ("si", "ov")), ("7b", ("si", "ov", "chat")), ("72b", ("si", "ov", "chat"))):
        base = f"llava-onevision-qwen2-{size}"
        assert {checked[0][f"{base}-{stage}"][0] for stage in stages} == {TOTALS[base]}


@pytest.fixture(scope="module")
def onevision():
    return vlmkit.check("llava-onevision-qwen2-7b")


def test_nothing_is_allocated():
    model = assemble(vlmkit.compose("llava-next-110b"))
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_table_of_shapes(onevision):
    """A picture of 480 x 640 is five tiles and 2929 tokens, 8 frames are 1569: llava-family.md, 3.4."""
    assert onevision.shapes == [
        ("tower", "timm", "[5, 729, 1152]", "27 x 27"),
        ("projector", "mlp", "[1, 729, 3584]", "27 x 27"),
        ("image.packer", "anyres", "[2929, 3584]", ""),
        ("tower", "timm", "[8, 729, 1152]", "27 x 27"),
        ("projector", "mlp", "[1, 729, 3584]", "27 x 27"),
        ("video.packer", "frames", "[1569, 3584]", ""),
    ]
    own = vlmkit.check("video-llava-7b-hf").shapes
    assert own[3:] == [
        ("video.tower", "timm", "[8, 257, 1024]", "16 x 16 + 1 prefix"),
        ("projector", "mlp", "[1, 257, 4096]", "16 x 16 + 1 prefix"),
        ("video.packer", "flat", "[2056, 4096]", ""),
    ]


def test_tokens_of_a_size(onevision):
    assert onevision.tokens(1080, 1920) == 7269
    assert onevision.tokens(480, 640, alone=False) == 730
    assert onevision.tokens(frames=32) == 6273
    with pytest.raises(TypeError):
        onevision.tokens()


def test_sections_of_parameters(onevision):
    """1152 -> 3584 and the decoder are tables 1.3 and 1.7; the final norm of the tower is not built."""
    assert onevision.parameters == {"tower": 397_747_744, "projector": 16_980_992, "decoder": 7_616_075_264,
                                    "separators": 3584}
    assert onevision.unused == {"tower": 2 * 1152}
    assert onevision.weight_bytes() == 2 * (8_030_807_584 - 2304)


def test_cache_bytes_are_those_of_its_layers():
    report = vlmkit.check("llava-1.5-7b")
    assert report.cache_bytes(1000) == 2 * 32 * 1000 * 32 * 128 * 2  # k and v, layers, positions, heads, head, bf16
    assert vlmkit.check("llava-onevision-qwen2-7b").cache_bytes(10) == 2 * 28 * 10 * 4 * 128 * 2


@pytest.mark.parametrize("name", small.PRESETS)
def test_counted_is_what_is_packed(name):
    """One stack of tiles for many visuals of all shapes: each gets the tokens that were counted without pixels."""
    skeleton, model, dice = assemble(small.preset(name)), small.model(name), random.Random(name)
    layouts = []
    for alone in (True, False):
        for _ in range(6):
            height, width = (int(2 ** dice.uniform(0, 11)) for _ in range(2))
            layouts.append(skeleton.image.tiler.plan(height, width, alone))
    if skeleton.video:
        layouts += [Layout("video", 40, 60, frames=dice.randint(1, 8)) for _ in range(4)]
    dice.shuffle(layouts)
    noise = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        seen = model.encode([_noise(layout, model, noise) for layout in layouts])
    assert [len(tokens) for tokens in seen] == [count(skeleton, layout) for layout in layouts]
    assert all(tokens.isfinite().all() for tokens in seen)
    assert {tokens.shape[1] for tokens in seen} == {32}


def _noise(layout, model, noise):
    side = model.tower.side
    return Visual(torch.randint(256, (layout.tiles, 3, side, side), dtype=torch.uint8, generator=noise), layout)


def test_counting_a_real_model_needs_no_skeleton():
    """Counting happens on meta, whatever device the weights are on: it costs nothing and changes nothing."""
    skeleton = assemble(small.preset("onevision"))
    layout = skeleton.image.tiler.plan(100, 300, True)
    assert count(skeleton, layout) == count(skeleton, layout) > 25


SHUFFLE = "projector={use: pixel_shuffle, factor: 5}"
MISFITS = [  # preset, what is changed, section that is named, what is said, what is advised
    ("next", ["projector=resampler"], "image.packer", "needs rows and columns", "`flat`"),
    ("onevision", ["projector=resampler", "image.packer=flat"], "video.packer", "needs rows and columns", "video"),
    ("llava", [SHUFFLE], "projector", "4 x 4 patches do not divide by 5", "2, 4"),
    ("next-video", ["video.packer.stride=9"], "video.packer", "", "video.packer"),
]


@pytest.mark.parametrize(("name", "words", "section", "said", "advised"), MISFITS)
def test_misfit_names_the_section(name, words, section, said, advised):
    base, tower, *more = small.PRESETS[name]
    preset = small.shrink(base, tower, *more, *words)
    with pytest.raises(ShapeError) as caught:
        vlmkit.check(preset)
    lines = str(caught.value).splitlines()
    assert base in lines[0]
    assert f"the {'video' if 'video' in section else 'image'} stream does not fit together" in lines[0]
    assert lines[1].split()[0] == "tower"  # the steps that went well come before
    assert lines[-2].split()[0] == section
    assert said in lines[-2]
    assert advised in lines[-1]


@pytest.mark.parametrize(("words", "error", "where"), [
    (["projector={use: resampler, heads: 5}"], ShapeError, "projector.heads"),
    (["tower.layer=9"], PresetError, "tower.layer"),
    (["tower.model=vit_large_patch14_clip_quickgelu_335"], PresetError, "tower.model"),
])
def test_parts_that_cannot_be_made_name_the_field(words, error, where):
    base, tower, *more = small.PRESETS["llava"]
    with pytest.raises(error) as caught:
        vlmkit.check(small.shrink(base, tower, *more, *words))
    assert caught.value.where == where


def test_a_stream_that_is_not_there():
    model = assemble(small.preset("llava"))
    with pytest.raises(ShapeError, match="takes no video"):
        count(model, Layout("video", 10, 10, frames=2))


def test_tokenizer_and_embedding():
    report = rehearse(assemble(small.preset("llava")), "llava")
    check_fit(report, small.VOCAB)
    with pytest.raises(PresetError, match="385 ids"):
        check_fit(report, small.VOCAB + 1)
