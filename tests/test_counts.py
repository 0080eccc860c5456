"""Golden token counts of the released families: size of a picture -> tokens, counted by packing on the meta device."""

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch

from vlmkit.contracts import Packer, Tiler
from vlmkit.parts.packers import anyres, flat, frames, slowfast
from vlmkit.parts.tilers import anyres as anyres_tiler
from vlmkit.parts.tilers import square
from vlmkit.types import Features, Layout

NEXT_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


class Family(NamedTuple):
    """Tiler and packer of a stream, and the grid of patches of its tower."""

    tiler: Tiler
    packer: Packer
    grid: int
    prefix: int = 0


def tiles(side: int, **fields: object) -> Tiler:
    return anyres_tiler.Config.model_validate(fields).build(side=side, fill=(0.5, 0.5, 0.5))


def one(side: int) -> Tiler:
    return square.Config().build(side=side, fill=(0.5, 0.5, 0.5))


def packer(part: object, **fields: object) -> Packer:
    with torch.device("meta"):
        return part.Config.model_validate(fields).build(width=8, out=8)


NEXT = Family(tiles(336, grids=NEXT_GRIDS), packer(anyres), 24)
ONEVISION = Family(tiles(384, largest=(6, 6), together="square"), packer(anyres, budget=9.0), 27)
LLAVA = Family(one(336), packer(flat), 24)
NEXT_VIDEO = Family(one(336), packer(frames, pool="average", stride=2, when="before"), 24)
ONEVISION_VIDEO = Family(one(384), packer(frames, pool="bilinear", stride=2, when="after", newline="end"), 27)
VIDEO_LLAVA = Family(one(224), packer(flat), 16, prefix=1)


def count(family: Family, layout: Layout) -> int:
    width, newline = 8, torch.empty(8, device="meta")
    tokens = torch.empty(layout.tiles, family.prefix + family.grid**2, width, device="meta")
    separators: Mapping[str, torch.Tensor] = {"newline": newline, "faster": newline}
    features = Features(tokens, family.grid, family.grid, family.prefix)
    return len(family.packer(features, [layout], lambda same: same, separators)[0])


def picture(family: Family, height: int, width: int, alone: bool = True) -> int:
    return count(family, family.tiler.plan(height, width, alone))


def clip(family: Family, frames: int) -> int:
    return count(family, Layout("video", 480, 640, frames=frames))


# height, width, tiles with the whole picture, tokens: llava-family.md 3.3, made by running transformers 5.23
NEXT_TABLE = [
    (336, 336, 3, 1176), (480, 640, 5, 2340), (640, 480, 5, 2352), (300, 1000, 4, 2182), (1000, 300, 4, 2232),
    (899, 1024, 5, 2634), (1080, 1920, 5, 1948), (1920, 1080, 5, 1968), (50, 50, 3, 1176), (337, 336, 3, 1176),
    (336, 337, 3, 1176), (672, 672, 5, 2928), (671, 673, 5, 2928), (100, 1000, 4, 1160), (2304, 2304, 5, 2928),
    (1, 1, 3, 1176), (500, 333, 3, 1476), (768, 1024, 5, 2340), (3000, 400, 4, 1368), (720, 1280, 5, 1948),
    (512, 512, 5, 2928), (600, 400, 5, 2160),
]
# sizes at which rounding to 7 decimals before truncation matters: llava-family.md 3.1, column of transformers
ROUNDING = [(176, 110, 984), (176, 198, 1272), (352, 110, 1392), (352, 748, 1848), (656, 205, 1392), (704, 396, 1968),
            (1056, 220, 1800)]
# llava-family.md 3.4
ONEVISION_TABLE = [
    (384, 384, 2, 1485), (480, 640, 5, 2929), (640, 480, 5, 2943), (300, 1000, 4, 2779), (1000, 300, 4, 2835),
    (899, 1024, 10, 6551), (1080, 1920, 16, 7269), (1920, 1080, 16, 7317), (50, 50, 2, 1485), (337, 336, 2, 1485),
    (768, 768, 5, 3699), (1152, 1152, 10, 7371), (1153, 1153, 17, 7371), (100, 1000, 4, 1467), (2304, 2304, 37, 7371),
    (3000, 4000, 31, 7309), (4000, 3000, 31, 7332), (1, 1, 2, 1485), (500, 333, 3, 1849), (3000, 400, 7, 4293),
    (720, 1280, 9, 5967), (768, 1024, 7, 4725), (512, 512, 5, 3699), (600, 400, 5, 2727),
]
# peers.md 4.2, worked out from the published geometry: height, width, LLaVA-1.5, LLaVA-NeXT, OneVision
BUDGETS = [
    (336, 336, 576, 1176, 1485), (480, 640, 576, 2340, 2929), (768, 1024, 576, 2340, 4725),
    (1080, 1920, 576, 1948, 7269), (1920, 1080, 576, 1968, 7317), (2304, 2304, 576, 2928, 7371),
]


@pytest.mark.parametrize(("height", "width", "cut", "tokens"), NEXT_TABLE)
def test_next(height, width, cut, tokens):
    layout = NEXT.tiler.plan(height, width, True)
    assert (layout.tiles, count(NEXT, layout)) == (cut, tokens)


@pytest.mark.parametrize(("height", "width", "tokens"), ROUNDING)
def test_next_rounds_before_it_truncates(height, width, tokens):
    assert picture(NEXT, height, width) == tokens


@pytest.mark.parametrize(("height", "width", "cut", "tokens"), ONEVISION_TABLE)
def test_onevision(height, width, cut, tokens):
    layout = ONEVISION.tiler.plan(height, width, True)
    assert (layout.tiles, count(ONEVISION, layout)) == (cut, tokens)


@pytest.mark.parametrize(("height", "width", "llava", "next_", "onevision"), BUDGETS)
def test_budgets(height, width, llava, next_, onevision):
    assert picture(LLAVA, height, width) == llava
    assert picture(NEXT, height, width) == next_
    assert picture(ONEVISION, height, width) == onevision


def test_most_tokens_of_onevision():
    # peers.md 4.2 found it by search, in steps of 16 pixels up to 4096: 98 rows of 81, their newlines, 729
    assert picture(ONEVISION, 1168, 960) == 98 * 81 + 98 + 729


@pytest.mark.parametrize(("height", "width"), [(480, 640), (300, 1000), (100, 50)])
def test_onevision_pictures_that_share_a_conversation(height, width):
    assert picture(ONEVISION, height, width, alone=False) == 730


def test_next_pictures_that_share_a_conversation_are_tiled_as_ever():
    assert picture(NEXT, 480, 640, alone=False) == 2340


@pytest.mark.parametrize(("family", "frames", "tokens"), [
    (ONEVISION_VIDEO, 1, 197), (ONEVISION_VIDEO, 8, 1569), (ONEVISION_VIDEO, 32, 6273),
    (NEXT_VIDEO, 1, 144), (NEXT_VIDEO, 8, 1152), (NEXT_VIDEO, 32, 4608), (NEXT_VIDEO, 56, 8064),
    (VIDEO_LLAVA, 8, 2056), (VIDEO_LLAVA, 4, 1028), (VIDEO_LLAVA, 1, 257),
])
def test_clips(family, frames, tokens):
    assert clip(family, frames) == tokens


def test_video_llava_picture():
    assert picture(VIDEO_LLAVA._replace(prefix=0), 480, 640) == 256


@pytest.mark.parametrize(("pool", "newline", "tokens"), [  # llava-family.md 3.2: 27 x 27 patches, stride 2, one frame
    ("bilinear", "row", 210), ("average", "row", 182), ("bilinear", "frame", 197), ("bilinear", "end", 197),
    ("bilinear", "none", 196), ("average", "none", 169), ("max", "none", 169), ("conv", "none", 169),
    ("none", "none", 729), ("none", "row", 756),
])
def test_llava_video_frames(pool, newline, tokens):
    family = Family(one(384), packer(frames, pool=pool, stride=2, when="after", newline=newline), 27)
    assert clip(family, 1) == tokens
    many = 10 * tokens if newline != "end" else 10 * (tokens - 1) + 1
    assert clip(family, 10) == many


def test_slowfast():
    family = Family(one(384), packer(slowfast, every=10), 27)
    slow, fast = 14 * 15 + 1, 7 * 8 + 1  # bilinear 2 and 4, a newline for each row, `faster` behind each frame
    assert clip(family, 32) == 4 * slow + 28 * fast
