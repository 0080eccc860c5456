"""Shapes, published parameter counts, and transformers' projectors."""

import pytest
import torch
import torch.nn.functional as F

from vlmkit.errors import ShapeError
from vlmkit.parts.packers import flat
from vlmkit.parts.projectors import linear, mlp, pixel_shuffle, resampler
from vlmkit.types import Features, Layout


def seen(tiles=2, rows=4, cols=6, width=8, prefix=0):
    return Features(torch.randn(tiles, prefix + rows * cols, width), rows, cols, prefix)


# llava-family.md 1.3
@pytest.mark.parametrize(("width", "out", "total"), [
    (1024, 4096, 20_979_712), (1024, 5120, 31_467_520), (1024, 7168, 58_734_592), (1024, 8192, 75_513_856),
    (1152, 896, 1_836_800), (1152, 1024, 2_230_272), (1152, 3584, 16_980_992), (1152, 4096, 21_504_000),
    (1152, 8192, 76_562_432),
])
def test_published_parameters(width, out, total):
    with torch.device("meta"):
        built = mlp.Config().build(width=width, out=out)
    assert sum(p.numel() for p in built.parameters()) == total
    assert sorted(built.state_dict()) == ["layers.0.bias", "layers.0.weight", "layers.2.bias", "layers.2.weight"]


@pytest.mark.parametrize("part", [linear, mlp])
def test_every_token_for_itself(part):
    built = part.Config().build(width=8, out=5)
    features = seen(prefix=1)
    out = built(features)
    assert out[1:] == features[1:]
    assert out.tokens.shape == (2, 25, 5)
    alone = built(features._replace(tokens=features.tokens[:1, 3:4])).tokens
    torch.testing.assert_close(out.tokens[:1, 3:4], alone)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth(depth):
    built = mlp.Config(depth=depth, act="relu", bias=False).build(width=8, out=5)
    assert [tuple(p.shape) for p in built.parameters()] == [(5, 8)] + [(5, 5)] * (depth - 1)


def test_maths():
    built = mlp.Config(norm=1e-5).build(width=8, out=5)
    features = seen()
    x = F.layer_norm(features.tokens, (8,), built.norm.weight, built.norm.bias, 1e-5)
    x = F.gelu(F.linear(x, built.layers[0].weight, built.layers[0].bias))  # with erf, not with tanh
    expected = F.linear(x, built.layers[2].weight, built.layers[2].bias)
    assert torch.equal(built(features).tokens, expected)


def test_resampler_gives_queries_without_a_place():
    built = resampler.Config(queries=4, depth=2, heads=2).build(width=8, out=6)
    for features in (seen(), seen(rows=3, cols=3, prefix=2)):
        out = built(features)
        assert (out.tokens.shape, out.rows, out.cols, out.prefix) == ((2, 4, 6), 0, 0, 0)
    with pytest.raises(ShapeError, match="rows and columns"):
        out.map  # noqa: B018


def test_resampler_reads_a_set():
    # attention without positions: the order of the tokens is no matter, their values are
    built = resampler.Config(queries=4, depth=2, heads=2).build(width=8, out=6)
    features = seen()
    turned = features._replace(tokens=features.tokens.flip(1))
    torch.testing.assert_close(built(features).tokens, built(turned).tokens)
    assert not torch.allclose(built(features).tokens, built(seen()).tokens, atol=1e-3)
    assert not torch.allclose(built(features).tokens[:, 0], built(features).tokens[:, 1], atol=1e-3)


def test_resampler_learns():
    built = resampler.Config(queries=4, depth=2, heads=2).build(width=8, out=6)
    built(seen()).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_resampler_heads_divide():
    with pytest.raises(ShapeError, match="4 heads do not divide a width of 6"):
        resampler.Config(heads=4).build(width=8, out=6)


def test_pixel_shuffle_joins_neighbours():
    built = pixel_shuffle.Config(factor=2, depth=1).build(width=1, out=4)
    with torch.no_grad():
        built.mlp.layers[0].weight.copy_(torch.eye(4))
        built.mlp.layers[0].bias.zero_()
        out = built(Features(torch.arange(17.0).view(1, 17, 1) - 1, 4, 4, prefix=1))
    assert (out.rows, out.cols, out.prefix) == (2, 2, 0)
    assert out.tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_pixel_shuffle_as_torch():
    built = pixel_shuffle.Config(factor=3).build(width=8, out=5)
    features = seen(rows=6, cols=3)
    expected = built.mlp(Features.of_map(F.pixel_unshuffle(features.map, 3)))
    assert torch.equal(built(features).tokens, expected.tokens)


def test_pixel_shuffle_wants_a_grid_that_divides():
    built = pixel_shuffle.Config(factor=2).build(width=8, out=5)
    with pytest.raises(ShapeError, match="27 x 27 patches do not divide by 2") as error:
        built(seen(rows=27, cols=27))
    assert "3, 9, 27" in error.value.hint
    with pytest.raises(ShapeError, match="rows and columns"):
        built(Features(torch.zeros(1, 4, 8), 0, 0))


@pytest.mark.parametrize(("part", "tokens"), [(linear, 24), (mlp, 24), (pixel_shuffle, 6), (resampler, 4)])
def test_on_meta_as_on_a_device(part, tokens):
    def length(device):
        with torch.device(device):
            project = part.Config(**part.EXAMPLE).build(width=8, out=6)
            features = Features(torch.zeros(3, 24, 8), 4, 6)
            return [len(one) for one in flat.Config().build(width=8, out=6)(
                features, [Layout("video", 9, 9, frames=2), Layout("image", 9, 9)], project, {})]
    assert length("meta") == length("cpu") == [2 * tokens, tokens]


@pytest.mark.parity
@pytest.mark.parametrize("vip", [False, True])
def test_as_transformers(vip):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
    from transformers.models.vipllava.modeling_vipllava import VipLlavaMultiModalProjector

    make, kind = ((VipLlavaMultiModalProjector, "VipLlava") if vip else (LlavaMultiModalProjector, "Llava"))
    theirs = make(getattr(transformers, f"{kind}Config")(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 8, "num_attention_heads": 1},
        text_config={"model_type": "llama", "hidden_size": 12, "num_attention_heads": 1}))
    ours = mlp.Config(norm=1e-5 if vip else None).build(width=40 if vip else 8, out=12)
    names = {"linear_1": "layers.0", "linear_2": "layers.2", "projector_layernorm": "norm"}
    ours.load_state_dict({f"{names[n.split('.')[0]]}.{n.split('.')[1]}": v for n, v in theirs.state_dict().items()})
    features = seen(width=40 if vip else 8)
    assert torch.equal(ours(features).tokens, theirs(features.tokens))
