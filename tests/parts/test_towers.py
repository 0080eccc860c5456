"""The timm tower: equal to transformers' towers, cut where it is read, at home on the meta device."""

import pytest
import torch
from pydantic import ValidationError

from vlmkit.errors import PresetError, ShapeError
from vlmkit.parts.towers import timm

TINY = {"img_size": 28, "embed_dim": 32, "depth": 3, "num_heads": 4}
CLIP = "vit_large_patch14_clip_quickgelu_336.openai"
SIGLIP = "vit_so400m_patch14_siglip_384.webli"


def tower(model=CLIP, options=None, seed=0, **fields):
    torch.manual_seed(seed)
    return timm.Config(model=model, options=TINY if options is None else options, **fields).build().eval()


def pixels(side, tiles=2):
    return torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# llava-family.md 1.2 and 1.7: parameters of the published towers
@pytest.mark.parametrize(("fields", "total", "grid", "blocks"), [
    ({"model": CLIP, "layer": -2}, 303_507_456, 24, 23),
    ({"model": "vit_large_patch14_clip_quickgelu_224.openai", "layer": -2}, 303_179_776, 16, 23),
    ({"model": SIGLIP, "options": {"depth": 26, "global_pool": "", "act_layer": "gelu_tanh"}}, 397_747_744, 27, 26),
    ({"model": SIGLIP, "layer": -2, "options": {"global_pool": ""}}, 412_987_248, 27, 26),
])
def test_published_parameters(fields, total, grid, blocks):
    with torch.device("meta"):
        built = timm.Config(**fields).build()
        seen = built(torch.zeros(5, 3, built.side, built.side, dtype=torch.uint8))
    assert sum(p.numel() for p in built.parameters()) + built.unused == total
    assert (len(built.blocks), built.width) == (blocks, seen.tokens.shape[2])
    assert (seen.rows, seen.cols, seen.tokens.shape[:2]) == (grid, grid, (5, grid**2))
    assert all(p.is_meta for p in built.parameters())


def test_whole_builds_everything():
    cut, whole = tower(layer=-2), tower(layer=-2, whole=True)
    assert whole.unused == 0
    assert cut.unused == sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in cut.parameters()) > 0
    cut.load_state_dict(whole.state_dict(), strict=False)  # the same names
    assert torch.equal(cut(pixels(28)).tokens, whole(pixels(28)).tokens)


@pytest.mark.parity
def test_normalisation_of_every_value_as_transformers():
    import numpy
    from transformers.image_transforms import normalize, rescale

    values = numpy.broadcast_to(numpy.arange(256, dtype=numpy.uint8).reshape(16, 16), (3, 16, 16))
    places = {"data_format": "channels_first", "input_data_format": "channels_first"}
    for built in (tower(), tower(SIGLIP, TINY | {"act_layer": "gelu_tanh"})):
        theirs = normalize(rescale(values, 1 / 255, **places), mean=built.mean, std=built.std, **places)
        ours = timm.normalise(torch.from_numpy(values.copy())[None], built.mean, built.std)[0]
        assert ours.dtype == torch.float32
        assert numpy.array_equal(ours.numpy(), theirs)


def test_statistics_may_be_named():
    built = tower(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert (built.mean, built.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_default_dtype_does_not_touch_normalisation():
    expected = timm.normalise(pixels(4), (0.48145466, 0.4, 0.4), (0.27, 0.26, 0.27))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(timm.normalise(pixels(4), (0.48145466, 0.4, 0.4), (0.27, 0.26, 0.27)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_tiles_go_in_turns():
    built = tower()
    built.room = 3 * 4 * 16  # three tiles of float32 on a CPU
    few = torch.cat([built(some).tokens for some in pixels(28, 8).split(3)])
    with torch.no_grad():
        many = built(pixels(28, 8))
    assert torch.equal(many.tokens, few)
    assert (many.rows, many.cols) == (2, 2)
    built(pixels(28, 8)).tokens.sum().backward()  # all at once, and it learns
    assert built.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert tower(activations=1).room < tower(activations=64).room


def test_half_precision_follows_the_weights():
    built = tower().to(torch.bfloat16)
    assert built(pixels(28)).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize(("model", "options", "side", "prefix", "width"), [
    ("vit_small_patch14_reg4_dinov2", TINY, 28, 5, 32),
    ("eva02_tiny_patch14_224", TINY, 28, 1, 32),
    ("beit_base_patch16_224", {**TINY, "img_size": 32}, 32, 1, 32),
    ("test_vit", {}, 160, 1, 64),
    ("test_convnext", {}, 160, 0, 64),
    ("test_resnet", {}, 160, 0, 96),
    ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2],
                                      "window_size": 7}, 56, 0, 24),
    ("samvit_base_patch16", {**TINY, "img_size": 64, "global_attn_indexes": [1]}, 64, 0, 32),
])
def test_other_architectures(model, options, side, prefix, width):
    drop, keep = tower(model, options, layer=-1), tower(model, options, layer=-1, prefix="keep")
    with torch.no_grad():
        patches, all_ = drop(pixels(side)), keep(pixels(side))
    assert (drop.side, drop.width, patches.tokens.shape[2]) == (side, width, width)
    assert patches.map.shape == (2, width, patches.rows, patches.cols)
    assert (patches.prefix, all_.prefix) == (0, prefix)
    assert torch.equal(all_.tokens[:, prefix:], patches.tokens)
    assert len(drop.blocks) >= 2
    with torch.device("meta"):
        built = timm.Config(model=model, options=options).build()
        assert built(torch.zeros(2, 3, side, side, dtype=torch.uint8)).tokens.shape == patches.tokens.shape


def test_a_convolution_takes_any_side():
    built = tower("test_convnext", {}, side=96)
    assert (built.side, built(pixels(96)).map.shape) == (96, (2, 64, 3, 3))


def test_layers_of_a_convolution_are_its_stages():
    features = [tower("test_convnext", {}, layer=n)(pixels(160, 1)) for n in (1, 2, -1)]
    assert [(seen.rows, seen.cols) for seen in features] == [(40, 40), (20, 20), (5, 5)]  # 1/4, 1/8, 1/32 of 160
    with pytest.raises(ShapeError, match="different grids"):
        tower("test_convnext", {}, layer=(1, 2))(pixels(160, 1))


@pytest.mark.parametrize(("model", "options", "side"), [
    ("eva02_tiny_patch14_224", {**TINY, "img_size": 42}, 42),
    ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2],
                                      "window_size": 7}, 56),
    (CLIP, TINY, 28),
])
def test_what_no_checkpoint_holds_is_computed_again(model, options, side):
    real = tower(model, options)
    with torch.device("meta"):
        built = timm.Config(model=model, options=options).build().eval()
    built.load_state_dict(real.state_dict(), assign=True)
    built.materialize()
    assert not any(buffer.is_meta for buffer in built.buffers())
    with torch.no_grad():
        assert torch.equal(built(pixels(side)).tokens, real(pixels(side)).tokens)


@pytest.mark.parametrize(("fields", "where"), [
    ({"model": "vit_large_patch14_clip_qickgelu_336"}, "tower.model"),
    ({"layer": -4}, "tower.layer"), ({"layer": 4}, "tower.layer"), ({"layer": 0}, "tower.layer"),
    ({"options": {"colour": "red"}}, "tower.options"),
    ({"options": {"embed_dim": 33, "num_heads": 4}}, "tower.options"),
    ({"side": 56}, "tower.side"),
])
def test_mistakes_are_told(fields, where):
    with pytest.raises(PresetError) as error:
        tower(**fields)
    assert error.value.where == where


def test_a_misspelt_model_is_guessed():
    with pytest.raises(PresetError, match="did you mean vit_large_patch14_clip_quickgelu_336"):
        tower("vit_large_patch14_clip_qickgelu_336")


@pytest.mark.parametrize("fields", [
    {"model": "hf-hub:somebody/something"}, {"model": "../weights"},
    {"model": CLIP, "options": {"checkpoint_path": "x"}}, {"model": CLIP, "options": {"pretrained": True}},
    {"model": CLIP, "options": {"pretrained_cfg": "x"}}, {"model": CLIP, "options": {"cache_dir": "x"}},
    {"model": CLIP, "options": {"depth": 10**9}}, {"model": CLIP, "options": {"depths": [2, 10**9]}},
    {"model": CLIP, "activations": 0}, {"model": CLIP, "prefix": "some"},
])
def test_a_preset_reads_no_files_and_stays_small(fields):
    with pytest.raises(ValidationError):
        timm.Config(**fields)


# --- side by side with transformers ---

NAMES = {  # llava-family.md 5.4
    "embeddings.patch_embedding": "patch_embed.proj", "pre_layrnorm": "norm_pre", "post_layernorm": "norm",
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "encoder.layers": "blocks",
}


def mapped(state):
    """transformers' names -> timm's; q, k, v joined."""
    ours, parts = {}, {}
    for name, value in state.items():
        name = name.removeprefix("vision_model.")
        for theirs, here in NAMES.items():
            name = name.replace(theirs, here)
        if name == "embeddings.class_embedding":
            ours["cls_token"] = value[None, None]
        elif name == "embeddings.position_embedding.weight":
            ours["pos_embed"] = value[None]
        elif "_proj." in name:
            parts[name] = value
        elif not name.startswith("head"):
            ours[name] = value
    for name in [n for n in parts if ".q_proj." in n]:
        joined = torch.cat([parts[name.replace(".q_", f".{x}_")] for x in "qkv"])
        ours[name.replace("self_attn.q_proj", "attn.qkv")] = joined
    return ours


def twins(kind):
    """A random transformers tower with three blocks, and ours with its weights."""
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    if kind == "clip":
        theirs = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**size, intermediate_size=128))
        model, options = CLIP, TINY
    else:
        theirs = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**size, intermediate_size=int(32 * 3.7362), vision_use_head=False))
        model, options = SIGLIP, TINY | {"act_layer": "gelu_tanh", "global_pool": ""}
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.eval().set_attn_implementation("sdpa")

    def ours(**fields):
        built = tower(model, options, whole=True, **fields)
        built.vit.load_state_dict(mapped(theirs.state_dict()))
        return built
    return theirs, ours


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hidden_states_as_transformers(kind):
    theirs, ours = twins(kind)
    first = 1 if kind == "clip" else 0
    built = ours()
    with torch.no_grad():
        x = timm.normalise(pixels(28), built.mean, built.std)
        states = theirs(x, output_hidden_states=True).hidden_states
        for layer in (-1, -2, -3, 1, 2, 3):
            assert torch.equal(ours(layer=layer)(pixels(28)).tokens, states[layer][:, first:]), layer
            kept = ours(layer=layer, prefix="keep")(pixels(28))
            assert torch.equal(kept.tokens, states[layer])
            assert kept.prefix == first
        order = (-1, 1, -2)  # VipLLaVA's kind: channels in the order of the list
        joined = torch.cat([states[layer][:, first:] for layer in order], dim=-1)
        assert torch.equal(ours(layer=order)(pixels(28)).tokens, joined)
        assert ours(layer=order).width == 96
