"""What we count is what transformers' processors count, for many sizes. VLMKIT_SIZES=10000 asks for more of them."""

import json
import math
import os
import random

import pytest
import torch

from vlmkit.parts.packers import anyres, flat, frames
from vlmkit.parts.tilers import anyres as anyres_tiler
from vlmkit.parts.tilers import square
from vlmkit.types import Features, Layout

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

SIZES = int(os.environ.get("VLMKIT_SIZES", "300"))
NEXT_GRIDS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
SERIES = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]


def tokenizer():
    from tokenizers import Tokenizer, models

    words = {"<unk>": 0, "<image>": 1, "<video>": 2}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")))


def llava():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return transformers.LlavaProcessor(pictures, tokenizer(), patch_size=14, num_additional_image_tokens=1,
                                       vision_feature_select_strategy="default")


def next_():
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[336 * rows, 336 * cols] for rows, cols in NEXT_GRIDS])
    return transformers.LlavaNextProcessor(pictures, tokenizer(), patch_size=14, num_additional_image_tokens=1,
                                           vision_feature_select_strategy="default")


def onevision():
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    pictures = LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384}, image_grid_pinpoints=SERIES)
    clips = transformers.LlavaOnevisionVideoProcessor()
    return transformers.LlavaOnevisionProcessor(
        pictures, tokenizer(), clips, num_image_tokens=729, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9")


def build(part, side=None, **fields):
    config = part.Config.model_validate_json(json.dumps(fields))
    return config.build(width=4, out=4) if side is None else config.build(side=side, fill=(0.5, 0.5, 0.5))


FAMILIES = {
    "llava": (llava, 24, build(square, 336, fit="crop"), build(flat)),
    "next": (next_, 24, build(anyres_tiler, 336, grids=NEXT_GRIDS), build(anyres)),
    "onevision": (onevision, 27, build(anyres_tiler, 384, largest=[6, 6], together="square"), build(anyres, budget=9)),
}


def sizes(count, seed):
    """Heights and widths over four orders of magnitude, thin ones, round ones, and multiples of small numbers."""
    draw = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:  # where a division comes out even, or nearly: what rounding is about
            step = draw.choice([7, 11, 14, 16, 22, 41, 44, 48, 56, 84])
            yield draw.randint(1, 2500 // step) * step, draw.randint(1, 2500 // step) * step
        elif i % 3 == 1:
            yield int(math.exp(draw.uniform(0, 8.5))), int(math.exp(draw.uniform(0, 8.5)))
        else:
            yield draw.randint(200, 1200), draw.randint(200, 1200)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_as_transformers(family):
    make, grid, tiler, packer = FAMILIES[family]
    theirs = make()
    newline = torch.empty(4, device="meta")
    wrong = []
    for height, width in sizes(SIZES, seed=family):
        if max(height, width) > 200 * min(height, width):
            continue  # refused when opened
        layout = tiler.plan(height, width, True)
        tokens = torch.empty(layout.tiles, grid * grid, 4, device="meta")
        ours = len(packer(Features(tokens, grid, grid), [layout], lambda same: same, {"newline": newline})[0])
        wanted = theirs._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0]
        if ours != wanted:
            wrong.append((height, width, ours, wanted))
    assert not wrong, f"{len(wrong)} of {SIZES}: {wrong[:5]}"


def test_clips_as_transformers():
    sizes = [(n, 480, 640) for n in (1, 2, 8, 17, 32, 64)]
    wanted = onevision()._get_num_multimodal_tokens(video_sizes=sizes)["num_video_tokens"]
    packer = build(frames, pool="bilinear", when="after", newline="end")
    for (n, height, width), tokens in zip(sizes, wanted, strict=True):
        features = Features(torch.empty(n, 729, 4, device="meta"), 27, 27)
        newline = {"newline": torch.empty(4, device="meta")}
        layout = Layout("video", height, width, frames=n)
        assert len(packer(features, [layout], lambda same: same, newline)[0]) == tokens
