"""Tokens in the right order, equal to transformers', and as many as were counted."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.errors import ShapeError
from vlmkit.parts.packers import anyres, flat, frames, slowfast
from vlmkit.parts.projectors import mlp
from vlmkit.types import Features, Layout

NEWLINE, FASTER = torch.full((1,), -1.0), torch.full((1,), -2.0)
SEPARATORS = {"newline": NEWLINE, "faster": FASTER}


def numbered(tiles, rows, cols, prefix=0):
    """Tile t, token n is the number 1000 * t + n."""
    tokens = torch.arange(prefix + rows * cols).float() + 1000 * torch.arange(tiles)[:, None]
    return Features(tokens[..., None], rows, cols, prefix)


def pack(part, features, layouts, **fields):
    packer = part.Config(**fields).build(width=1, out=1)
    found = packer(features, layouts, lambda same: same, {n: SEPARATORS[n] for n in packer.separators})
    return [one.squeeze(1).tolist() for one in found]


def clip(frames):
    return Layout("video", 480, 640, frames=frames)


def picture(height, width, rows=0, cols=0):
    return Layout("image", height, width, rows, cols)


def test_flat_keeps_order_and_prefix():
    layouts = [picture(5, 5), clip(2)]
    assert pack(flat, numbered(3, 1, 2, prefix=1), layouts) == [[0, 1, 2], [1000, 1001, 1002, 2000, 2001, 2002]]
    assert pack(flat, numbered(3, 1, 2), layouts, newline="end") == [[0, 1, -1], [1000, 1001, 2000, 2001, -1]]


def test_anyres_reads_rows_across_tiles():
    whole = [[0, 1, 2, 3]]
    tiles = [1000, 1001, 2000, 2001, -1, 1002, 1003, 2002, 2003, -1]
    assert pack(anyres, numbered(3, 2, 2), [picture(8, 16, 1, 2)]) == [whole[0] + tiles]
    without = [n for n in tiles if n >= 0]
    assert pack(anyres, numbered(3, 2, 2), [picture(8, 16, 1, 2)], newline="none") == [whole[0] + without]


def test_anyres_cuts_padding():
    # 8 x 8 pixels in a canvas of 1 x 2 tiles: the outer columns are padding
    assert pack(anyres, numbered(3, 2, 2), [picture(8, 8, 1, 2)]) == [
        [0, 1, 2, 3, 1001, 2000, -1, 1003, 2002, -1]]
    assert len(pack(anyres, numbered(3, 2, 2), [picture(8, 8, 1, 2)], unpad=False)[0]) == 4 + 2 * 5


def test_anyres_of_one_tile_ends_with_a_newline():
    assert pack(anyres, numbered(1, 2, 2), [picture(8, 8)]) == [[0, 1, 2, 3, -1]]
    assert pack(anyres, numbered(1, 2, 2), [picture(8, 8)], newline="none") == [[0, 1, 2, 3]]


def test_anyres_keeps_the_class_token_of_the_whole_only():
    packed = pack(anyres, numbered(2, 1, 2, prefix=1), [picture(8, 16, 1, 1)], unpad=False)
    assert packed == [[0, 1, 2, 1001, 1002, -1]]


def test_anyres_wants_a_grid():
    with pytest.raises(ShapeError, match="rows and columns"):
        pack(anyres, Features(torch.zeros(1, 4, 1), 0, 0), [picture(8, 8)])


@pytest.mark.parametrize(("rows", "shrunk"), [(3, False), (4, True)])
def test_budget_has_a_slack_of_a_tenth(rows, shrunk):
    # sqrt(3 * 2 / 5) = 1.095 stays, sqrt(4 * 2 / 5) = 1.265 shrinks to 4 // 1.265 by 2 // 1.265
    packed = pack(anyres, numbered(rows + 1, 1, 2), [picture(8 * rows, 16, rows, 1)], budget=2.5, unpad=False)
    assert len(packed[0]) == 2 + (3 * 2 if shrunk else rows * 3)


def test_newline_places_of_frames():
    both = numbered(2, 2, 1)
    for newline, expected in {
        "none": [0, 1, 1000, 1001], "end": [0, 1, 1000, 1001, -1], "frame": [0, 1, -1, 1000, 1001, -1],
        "row": [0, -1, 1, -1, 1000, -1, 1001, -1],
    }.items():
        assert pack(frames, both, [clip(2)], pool="none", newline=newline) == [expected]


def test_frames_without_pooling_keep_the_class_token():
    assert pack(frames, numbered(2, 1, 2, prefix=1), [clip(2)], pool="none") == [[0, 1, 2, 1000, 1001, 1002]]


def test_frames_pool():
    assert pack(frames, numbered(1, 2, 2, prefix=1), [clip(1)]) == [[2.5]]
    assert pack(frames, numbered(1, 2, 2, prefix=1), [clip(1)], pool="max") == [[4]]
    assert pack(frames, numbered(2, 3, 3), [clip(1), clip(1)], pool="max", newline="end") == [[4, -1], [1004, -1]]


def test_before_or_after_the_projector_differs():
    torch.manual_seed(0)
    project = mlp.Config().build(width=6, out=4)
    features = Features(torch.randn(2, 16, 6), 4, 4)
    small = F.avg_pool2d(features.map, 2)
    before, after = (frames.Config(when=when).build(width=6, out=4)(features, [clip(2)], project, {})[0]
                     for when in ("before", "after"))
    assert torch.equal(before, project(Features.of_map(small)).tokens.flatten(0, 1))
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize(("when", "width"), [("before", 6), ("after", 4)])
def test_pool_that_learns(when, width):
    packer = frames.Config(pool="conv", when=when).build(width=6, out=4)
    assert packer.conv.weight.shape == (width, width, 2, 2)
    features = Features(torch.randn(3, 16, 6), 4, 4)
    tokens = packer(features, [clip(3)], mlp.Config().build(width=6, out=4), {})[0]
    tokens.sum().backward()
    assert tokens.shape == (12, 4)
    assert packer.conv.weight.grad is not None


def test_slow_and_fast():
    both = numbered(3, 2, 2)
    assert pack(slowfast, both, [clip(3)], every=2, slow=1, fast=2) == [
        [0, 1, -1, 2, 3, -1, -2, 1001.5, -1, -2, 2000, 2001, -1, 2002, 2003, -1, -2]]
    assert pack(slowfast, both, [clip(2), clip(1)], every=5, slow=2, fast=2, newline="none", faster=False) == [
        [1.5, 1001.5], [2001.5]]  # every clip starts with a slow frame


LAYOUTS = st.one_of(
    st.builds(clip, st.integers(1, 5)),
    st.builds(picture, st.integers(1, 900), st.integers(1, 900)),
    st.builds(picture, st.integers(1, 900), st.integers(1, 900), st.integers(1, 5), st.integers(1, 5)),
)
PACKERS = [
    flat.Config(), flat.Config(newline="end"), anyres.Config(), anyres.Config(budget=2.0),
    anyres.Config(unpad=False, newline="none"), frames.Config(),
    frames.Config(pool="bilinear", when="after", newline="end"),
    frames.Config(pool="conv", stride=3, newline="row"), frames.Config(pool="none", newline="frame"),
    slowfast.Config(every=2), slowfast.Config(newline="none", faster=False),
]


@settings(max_examples=25, deadline=None)
@given(st.lists(LAYOUTS, min_size=1, max_size=4), st.sampled_from(PACKERS), st.integers(4, 7), st.integers(4, 7))
def test_packs_what_it_counts(layouts, config, rows, cols):
    """One by one on meta, all together on a device: the same numbers of tokens."""
    tiles = sum(layout.tiles for layout in layouts)

    def lengths(device, some, tiles):
        with torch.device(device):
            packer, project = config.build(width=4, out=3), mlp.Config().build(width=4, out=3)
            separators = {name: torch.zeros(3) for name in packer.separators}
            features = Features(torch.zeros(tiles, rows * cols, 4), rows, cols)
        return [tuple(one.shape) for one in packer(features, some, project, separators)]

    counted = [lengths("meta", [layout], layout.tiles)[0] for layout in layouts]
    assert lengths("cpu", layouts, tiles) == counted
    assert all(width == 3 for _, width in counted)


# --- side by side with transformers ---

SIZES = [(480, 640), (300, 1000), (1000, 300), (899, 1024), (176, 110), (3000, 400), (50, 50), (3000, 4000)]


def model(kind, vision, **fields):
    """A transformers model with a tiny decoder; what is looked at is how it packs."""
    import transformers

    text = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, **fields)
    return getattr(transformers, f"{kind}Model")(config).eval()


def vision(kind, side):
    return {"model_type": kind, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "image_size": side, "patch_size": 14}


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["LlavaNext", "LlavaOnevision"])
def test_anyres_as_transformers(kind):
    from vlmkit.parts.tilers import anyres as tiler

    torch.manual_seed(0)
    newline = torch.randn(8)
    if kind == "LlavaNext":
        cut = tiler.Config(grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))).build(side=336, fill=(0, 0, 0))
        tower, side, budget = vision("clip_vision_model", 336), 24, None
        extra = {"vision_feature_select_strategy": "default"}
    else:
        cut = tiler.Config(largest=(6, 6)).build(side=384, fill=(0, 0, 0))
        tower, side, budget = vision("siglip_vision_model", 384), 27, 9.0
        extra = {"vision_aspect_ratio": "anyres_max_9"}
    theirs = model(kind, tower, image_grid_pinpoints=[[cut.side * r, cut.side * c] for r, c in cut.grids])
    layouts = [cut.plan(*size, True) for size in SIZES]
    tokens = torch.randn(sum(layout.tiles for layout in layouts), side * side, 8)
    ours = anyres.Config(budget=budget).build(width=8, out=8)(
        Features(tokens, side, side), layouts, lambda same: same, {"newline": newline})
    expected, _ = theirs.pack_image_features(
        tokens.split([layout.tiles for layout in layouts]), torch.tensor(SIZES), image_newline=newline, **extra)
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parity
def test_onevision_frames_as_transformers():
    theirs = model("LlavaOnevision", vision("siglip_vision_model", 384))
    tokens, newline = torch.randn(5, 729, 8), torch.randn(8)
    expected = torch.cat([theirs.apply_pooling(tokens).flatten(0, 1), newline[None]])
    packer = frames.Config(pool="bilinear", when="after", newline="end").build(width=8, out=8)
    ours = packer(Features(tokens, 27, 27), [clip(5)], lambda same: same, {"newline": newline})
    assert torch.equal(ours[0], expected)


@pytest.mark.parity
@pytest.mark.parametrize("pool", ["average", "max", "conv"])
def test_next_video_frames_as_transformers(pool):
    fields = {"spatial_pool_mode": pool, "spatial_pool_stride": 2, "spatial_pool_out_channels": 8}
    theirs = model("LlavaNextVideo", vision("clip_vision_model", 336), **fields)
    tokens = torch.randn(3, 576, 8)
    packer = frames.Config(pool=pool, stride=2).build(width=8, out=8)
    project = mlp.Config().build(width=8, out=8)
    if pool == "conv":
        packer.conv.load_state_dict(theirs.vision_resampler.pool.state_dict())
    for name, linear in (("layers.0", "linear_1"), ("layers.2", "linear_2")):
        project.get_submodule(name).load_state_dict(theirs.multi_modal_projector.get_submodule(linear).state_dict())
    with torch.no_grad():
        expected = theirs.multi_modal_projector(theirs.vision_resampler(tokens))
        ours = packer(Features(tokens, 24, 24), [clip(3)], project, {})[0]
    assert torch.equal(ours, expected.flatten(0, 1))
