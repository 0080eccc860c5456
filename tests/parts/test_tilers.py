"""Plans against worked tables, pixels against transformers' processors for PIL, bit for bit."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlmkit.parts.tilers import anyres, square
from vlmkit.parts.tilers.resize import pixels, planes, resize
from vlmkit.parts.towers.timm import normalise

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
NEXT = anyres.Config(grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))).build(side=336, fill=CLIP[0])
ONEVISION = anyres.Config(largest=(6, 6), together="square").build(side=384, fill=HALF[0])
SIZES = [(480, 641), (899, 1024), (300, 1000), (336, 336), (37, 29), (500, 333), (101, 57), (5, 900)]


def picture(height, width):
    draw = numpy.random.default_rng(height * 10_000 + width)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=numpy.uint8))


# llava-family.md 2.5: (h, w), NeXT canvas, resized, offset (top, left); the same of OneVision. Its last line said 504:
# transformers computes 3000 * (672 / 4000) = 504.00000000000006 and rounds up
TABLE = [
    ((336, 336), (336, 672), (336, 336), (0, 168), (384, 384), (384, 384), (0, 0)),
    ((480, 640), (672, 672), (504, 672), (84, 0), (768, 768), (576, 768), (96, 0)),
    ((640, 480), (672, 672), (672, 504), (0, 84), (768, 768), (768, 576), (0, 96)),
    ((300, 1000), (336, 1008), (303, 1008), (16, 0), (384, 1152), (346, 1152), (19, 0)),
    ((1000, 300), (1008, 336), (1008, 303), (0, 16), (1152, 384), (1152, 346), (0, 19)),
    ((899, 1024), (672, 672), (590, 672), (41, 0), (1152, 1152), (1012, 1152), (70, 0)),
    ((1080, 1920), (672, 672), (378, 672), (147, 0), (1152, 1920), (1080, 1920), (36, 0)),
    ((337, 336), (672, 336), (337, 336), (167, 0), (384, 384), (384, 383), (0, 0)),
    ((500, 333), (672, 336), (505, 336), (83, 0), (768, 384), (577, 384), (95, 0)),
    ((600, 400), (672, 672), (672, 449), (0, 111), (768, 768), (768, 512), (0, 128)),
    ((100, 1000), (336, 1008), (101, 1008), (117, 0), (384, 1152), (116, 1152), (134, 0)),
    ((3000, 400), (1008, 336), (1008, 135), (0, 100), (2304, 384), (2304, 308), (0, 38)),
    ((3000, 4000), (672, 672), (505, 672), (83, 0), (1920, 2304), (1728, 2304), (96, 0)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "x".join(map(str, row[0])))
def test_canvas_and_size(row):
    (height, width), *expected = row
    for tiler, (canvas, resized, _) in ((NEXT, expected[:3]), (ONEVISION, expected[3:])):
        layout = tiler.plan(height, width, True)
        assert (layout.rows * tiler.side, layout.cols * tiler.side) == canvas
        assert anyres.fitted(height, width, *canvas) == resized


@pytest.mark.parametrize("row", TABLE[:11], ids=lambda row: "x".join(map(str, row[0])))
@pytest.mark.parametrize("resample", ["pillow", "torch"])
def test_picture_stands_in_the_middle_of_black(row, resample):
    (height, width), canvas, resized, offset, *_ = row
    tiler = anyres.Config(grids=NEXT.grids, resample=resample).build(side=336, fill=CLIP[0])
    layout = tiler.plan(height, width, True)
    tiles = tiler.cut(Image.new("RGB", (width, height), (255, 255, 255)), layout)
    seen = tiles[1:].view(layout.rows, layout.cols, 3, 336, 336).permute(2, 0, 3, 1, 4).reshape(3, *canvas)[0].numpy()
    rows, cols = numpy.flatnonzero(seen.any(1)), numpy.flatnonzero(seen.any(0))
    assert ((rows[0], cols[0]), (len(rows), len(cols))) == (offset, resized)
    assert seen[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all()


# llava-family.md 2.3: (h, w), side, top and left of the crop after the shorter edge became `side`
@pytest.mark.parametrize(("height", "width", "side", "resized", "offset"), [
    (480, 640, 336, (336, 448), (0, 56)), (480, 640, 224, (224, 298), (0, 37)), (640, 480, 336, (448, 336), (56, 0)),
    (640, 480, 224, (298, 224), (37, 0)), (899, 1024, 336, (336, 382), (0, 23)), (899, 1024, 224, (224, 255), (0, 15)),
    (300, 1000, 336, (336, 1120), (0, 392)), (300, 1000, 224, (224, 746), (0, 261)),
    (1080, 1920, 336, (336, 597), (0, 130)), (1080, 1920, 224, (224, 398), (0, 87)),
    (500, 333, 336, (504, 336), (84, 0)), (500, 333, 224, (336, 224), (56, 0)),
    (3000, 400, 336, (2520, 336), (1092, 0)), (3000, 400, 224, (1680, 224), (728, 0)),
    (337, 336, 336, (337, 336), (0, 0)), (337, 336, 224, (224, 224), (0, 0)),
])
def test_crop(height, width, side, resized, offset):
    whole, (top, left) = picture(height, width), offset
    grown = numpy.array(whole.resize(resized[::-1], Image.Resampling.BICUBIC))
    expected = torch.from_numpy(grown[top : top + side, left : left + side]).permute(2, 0, 1)
    tiler = square.Config(fit="crop").build(side=side, fill=CLIP[0])
    assert torch.equal(tiler.cut(whole, tiler.plan(height, width, True))[0], expected)


def test_fill_is_truncated():
    assert square.colour(CLIP[0]) == (122, 116, 104)
    assert square.colour(HALF[0]) == (127, 127, 127)


def test_orders():
    # a full tie takes the first of the list: transformers' order gives a landscape grid, the authors' a portrait one
    turned = anyres.Config(grids=((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))).build(side=336, fill=CLIP[0])
    assert NEXT.plan(101, 57, True)[3:5] == (1, 2)
    assert turned.plan(101, 57, True)[3:5] == (2, 1)


def test_tiles_read_row_by_row():
    tiler = anyres.Config(grids=((2, 3),)).build(side=8, fill=HALF[0])
    sheet = Image.new("RGB", (24, 16))
    for i in range(6):
        sheet.paste((i * 40, 0, 0), (i % 3 * 8, i // 3 * 8, i % 3 * 8 + 8, i // 3 * 8 + 8))
    tiles = tiler.cut(sheet, tiler.plan(16, 24, True))
    assert tiles.shape == (7, 3, 8, 8)
    assert tiles[1:, 0].amax((1, 2)).tolist() == tiles[1:, 0].amin((1, 2)).tolist() == [0, 40, 80, 120, 160, 200]


@pytest.mark.parametrize("fields", [{}, {"grids": ((1, 2),), "largest": (2, 2)}, {"grids": ()}, {"grids": ((0, 1),)},
                                    {"largest": (65, 1)}, {"largest": (10**9, 10**9)}, {"largest": (0, 2)}])
def test_refuses(fields):
    with pytest.raises(ValidationError):
        anyres.Config(**fields)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.booleans())
def test_cuts_what_it_plans(height, width, alone):
    for tiler in (anyres.Config(largest=(3, 3), together="square").build(side=16, fill=HALF[0]),
                  square.Config(fit="pad").build(side=16, fill=HALF[0])):
        layout = tiler.plan(height, width, alone)
        for tiler.resample in ("pillow", "torch"):
            tiles = tiler.cut(Image.new("RGB", (width, height)), layout)
            assert tiles.shape == (layout.tiles, 3, 16, 16)
            assert tiles.dtype == torch.uint8
            assert tiles.is_contiguous()


@pytest.fixture(params=[1, 3])
def threads(request):
    """The answer must not depend on how many threads there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# one-pixel edges, odd sizes, and pictures that Pillow holds in several pieces
EDGES = [(1, 1), (1, 50), (70, 1), (2, 399), (480, 641), (901, 300), (1080, 1920), (2101, 2099), (900, 5003),
         (4100, 1100)]


@pytest.mark.parametrize(("height", "width"), EDGES)
def test_pillow_is_the_reference(height, width, threads):
    whole = picture(height, width)
    edge = max(height, width)
    canvas = Image.new("RGB", (edge, edge), (122, 116, 104))
    canvas.paste(whole, ((edge - width) // 2, (edge - height) // 2))
    for size in ((336, 336), (37, 501), (1, 1), (height, 20), (20, width)):
        for made, source in ((resize(whole, [size], "pillow"), whole),
                             (resize(whole, [size], "pillow", edge, (122, 116, 104)), canvas)):
            expected = numpy.array(source.resize(size[::-1], Image.Resampling.BICUBIC))
            assert numpy.array_equal(planes(made[0]).permute(1, 2, 0), expected)


@pytest.mark.parametrize(("height", "width"), EDGES)
def test_torch_is_within_two_levels(height, width, threads):
    """Of Pillow that takes the width first, as all did before 13. That one takes the height first where it shrinks
    more, and rounding in between then differs by up to 23 levels, of its own results before."""
    whole = picture(height, width)
    sizes = [(336, 336), (37, 501), (1, 1), (height, 20), (20, width)]
    for size, made in zip(sizes, resize(whole, sizes, "torch"), strict=True):
        expected = numpy.array(whole.resize((size[1], height), Image.Resampling.BICUBIC).resize(
            size[::-1], Image.Resampling.BICUBIC))
        assert numpy.abs(planes(made).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_source_is_not_written_to():
    whole = picture(480, 640)
    before = whole.tobytes()
    for resample in ("pillow", "torch"):
        for tiler in (anyres.Config(largest=(2, 2), resample=resample).build(side=16, fill=HALF[0]),
                      square.Config(fit="pad", resample=resample).build(side=16, fill=HALF[0])):
            tiler.cut(whole, tiler.plan(480, 640, True)).zero_()
            made = tiler.cut(picture(16, 16), tiler.plan(16, 16, True))  # needs no resizing
            made.zero_()
    assert whole.tobytes() == before


def test_pixels_outlive_their_picture():
    found = [pixels(picture(300, 200)) for _ in range(20)]  # each picture is gone, its memory is not
    expected = numpy.array(picture(300, 200))
    assert all(numpy.array_equal(planes(one).permute(1, 2, 0), expected) for one in found)


def values(processor, *pictures):
    found = processor(images=list(pictures) if len(pictures) == 1 else [list(pictures)], return_tensors="pt")
    return found["pixel_values"]


def equal(tiler, stats, theirs, height, width, alone=True):
    ours = normalise(tiler.cut(picture(height, width), tiler.plan(height, width, alone)), *stats)
    return torch.equal(ours, theirs.reshape(ours.shape))


@pytest.mark.parity
@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_plans_as_transformers(height, width):
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.image_processing_pil_llava_next import get_patch_output_size

    for tiler in (NEXT, ONEVISION):
        layout = tiler.plan(height, width, True)
        canvas = select_best_resolution((height, width), [(r * tiler.side, c * tiler.side) for r, c in tiler.grids])
        assert (layout.rows * tiler.side, layout.cols * tiler.side) == canvas
        like = numpy.broadcast_to(numpy.uint8(0), (3, height, width))
        assert anyres.fitted(height, width, *canvas) == get_patch_output_size(like, canvas, "channels_first")


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_square_as_transformers(height, width):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    for fit, processor, stats in [
        ("crop", CLIPImageProcessorPil(**size), CLIP),
        ("pad", LlavaImageProcessorPil(**size, do_pad=True), CLIP),
        ("squash", SiglipImageProcessorPil(size={"height": 336, "width": 336}, resample=3), HALF),
    ]:
        tiler = square.Config(fit=fit).build(side=336, fill=stats[0])
        assert equal(tiler, stats, values(processor, picture(height, width)), height, width), fit


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_next_as_transformers(height, width):
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[336 * rows, 336 * cols] for rows, cols in NEXT.grids])
    assert equal(NEXT, CLIP, values(processor, picture(height, width)), height, width)


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_onevision_as_transformers(height, width):
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 384, "width": 384}, image_mean=HALF[0], image_std=HALF[1],
        image_grid_pinpoints=[[384 * rows, 384 * cols] for rows, cols in ONEVISION.grids])
    alone = values(processor, picture(height, width))
    assert equal(ONEVISION, HALF, alone, height, width)
    together = values(processor, picture(height, width), picture(50, 70))
    assert equal(ONEVISION, HALF, together[0], height, width, alone=False)


@pytest.mark.parity
@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torchvision resizes floats there")
@pytest.mark.parametrize(("height", "width"), [*SIZES, (1080, 1920), (2101, 2099)])
def test_torch_gives_what_torchvision_gives(height, width, threads):
    from transformers import (
        CLIPImageProcessor,
        LlavaImageProcessor,
        LlavaNextImageProcessor,
        LlavaOnevisionImageProcessor,
        SiglipImageProcessor,
    )

    crop = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    flat = {"size": {"height": 384, "width": 384}, "image_mean": HALF[0], "image_std": HALF[1]}
    whole = picture(height, width)
    for part, config, side, processor, stats in [
        (square, {"fit": "crop"}, 336, CLIPImageProcessor(**crop), CLIP),
        (square, {"fit": "pad"}, 336, LlavaImageProcessor(**crop, do_pad=True), CLIP),
        (square, {"fit": "squash"}, 384, SiglipImageProcessor(**flat, resample=3), HALF),
        (anyres, {"grids": NEXT.grids}, 336, LlavaNextImageProcessor(
            **crop, image_grid_pinpoints=[[336 * r, 336 * c] for r, c in NEXT.grids]), CLIP),
        (anyres, {"largest": (6, 6)}, 384, LlavaOnevisionImageProcessor(
            **flat, image_grid_pinpoints=[[384 * r, 384 * c] for r, c in ONEVISION.grids]), HALF),
    ]:
        assert processor.backend == "torchvision"
        tiler = part.Config(**config, resample="torch").build(side=side, fill=stats[0])
        tiles = tiler.cut(whole, tiler.plan(height, width, True))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in stats)
        theirs = values(processor, whole).reshape(tiles.shape) * std + mean
        assert torch.equal(tiles, (theirs * 255).round().to(torch.uint8)), (type(processor).__name__, height, width)
        assert (normalise(tiles, *stats) * std + mean - theirs).abs().max() < 1e-6
