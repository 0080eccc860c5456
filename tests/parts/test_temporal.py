"""The tower of Video-LLaVA's clips: its maths, written out by hand from llava-family.md 1.12, and its one length."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vlmkit
from vlmkit.errors import ShapeError
from vlmkit.model.assemble import assemble
from vlmkit.model.rehearse import count
from vlmkit.parts.towers import temporal, timm
from vlmkit.types import Layout, Visual

GELU = "vit_large_patch14_clip_224.openai"
SMALL: dict[str, Any] = {"img_size": 28, "embed_dim": 16, "depth": 3, "num_heads": 2}
FRAMES, HEADS, PLACES = 4, 2, 5  # 2 x 2 patches and the class token


def tower(**more: Any) -> temporal.Tower:
    """Every weight random, so that whatever is left out shows."""
    torch.manual_seed(0)
    fields = {"model": GELU, "options": SMALL, "layer": -2, "prefix": "keep", "frames": FRAMES} | more
    made = temporal.Config(**fields).build().eval()
    for name, weight in made.named_parameters():
        nn.init.normal_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return made


def pixels(clips: int) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (clips * FRAMES, 3, 28, 28), dtype=torch.uint8, generator=noise)


def attend(x: Tensor, get: Any, at: str) -> Tensor:
    """Several heads, no mask, written out.   [rows, length, width] -> the same"""
    q, k, v = F.linear(x, get(f"{at}.qkv.weight"), get(f"{at}.qkv.bias")).chunk(3, dim=-1)
    found, size = torch.empty_like(x), x.shape[-1] // HEADS
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / size**0.5
        found[..., own] = scores.softmax(-1) @ v[..., own]
    return F.linear(found, get(f"{at}.proj.weight"), get(f"{at}.proj.bias"))


def by_hand(made: temporal.Tower, pictures: Tensor, depth: int) -> Tensor:
    """hidden_states[depth] of LanguageBind's video tower: for each place its frames, then for each frame its places."""
    state = made.vit.state_dict()
    get = state.__getitem__

    def norm(x: Tensor, at: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], get(f"{at}.weight"), get(f"{at}.bias"), 1e-5)

    x = timm.normalise(pictures, made.mean, made.std)
    x = F.conv2d(x, get("patch_embed.proj.weight"), stride=14).flatten(2).transpose(1, 2)
    x = norm(torch.cat([get("cls_token").expand(len(x), -1, -1), x], dim=1) + get("pos_embed"), "norm_pre")
    for block in (f"blocks.{i}" for i in range(depth)):
        for first in range(0, len(x), FRAMES):
            for place in range(PLACES):
                column = x[first : first + FRAMES, place][None] + get(f"{block}.time.embedding")
                column = column + attend(norm(column, f"{block}.time.norm"), get, f"{block}.time.attn")
                x[first : first + FRAMES, place] = column[0]
        x = x + attend(norm(x, f"{block}.norm1"), get, f"{block}.attn")
        inner = F.linear(norm(x, f"{block}.norm2"), get(f"{block}.mlp.fc1.weight"), get(f"{block}.mlp.fc1.bias"))
        x = x + F.linear(F.gelu(inner), get(f"{block}.mlp.fc2.weight"), get(f"{block}.mlp.fc2.bias"))
    return x


@torch.no_grad()
@pytest.mark.parametrize(("layer", "depth"), [(-2, 2), (-1, 3)])
def test_as_written_by_hand(layer: int, depth: int) -> None:
    made = tower(layer=layer)
    found = made(pixels(2))
    assert (found.rows, found.cols, found.prefix, found.tokens.shape) == (2, 2, 1, (8, PLACES, 16))
    wanted = by_hand(made, pixels(2), depth)
    assert wanted.std() > 0.3
    torch.testing.assert_close(found.tokens, wanted, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_frames_see_each_other_and_clips_do_not() -> None:
    made, two = tower(), pixels(2)
    before = made(two).tokens
    changed = two.clone()
    changed[3] = 0  # the last frame of the first clip
    moved = (made(changed).tokens - before).abs().flatten(1).amax(1)
    assert (moved[:4] > 1e-3).all()
    assert not moved[4:].any()
    made.room = 5 * 4 * 32  # five tiles of float32 on a CPU: less than two clips, so one goes after the other
    torch.testing.assert_close(made(two).tokens, before, rtol=0, atol=1e-6)


def test_another_number_of_frames_is_refused() -> None:
    with pytest.raises(ShapeError, match="6 frames are no clips of 4"):
        tower()(pixels(2)[:6])


def test_its_own_numbers() -> None:
    """llava-family.md 1.12: 4 208 640 more in each of 24 blocks."""
    plain, own = (vlmkit.check(name).parameters["video.tower"] for name in ("video-llava-7b-hf", "video-llava-7b"))
    assert own - plain == 24 * 4_208_640 == 101_007_360


def small(*words: str) -> Any:
    sizes = [f"{at}.options.{key}={value}" for at in ("tower", "video.tower") for key, value in SMALL.items()]
    decoder = [f"decoder.{key}={value}" for key, value in
               {"width": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 64}.items()]
    return vlmkit.compose("video-llava-7b", *sizes, *decoder, *words)


@torch.no_grad()
def test_in_a_model_clips_of_8_run_and_others_are_one_clear_error() -> None:
    model = vlmkit.build(small()).eval()
    frames = torch.cat([pixels(2)] * 2)
    eight = [Visual(frames[:8], Layout("video", 28, 28, frames=8))] * 2
    assert [tuple(tokens.shape) for tokens in model.encode(eight)] == [(8 * PLACES, 32)] * 2
    halves = [Visual(frames[:4], Layout("video", 28, 28, frames=4))] * 2  # together they would be eight
    with pytest.raises(ShapeError, match=r"exactly 8 frames together; this is a clip of 4") as error:
        model.encode(halves)
    assert (error.value.where, error.value.hint) == ("video.tower", "set video.sampler.frames=8")
    with pytest.raises(ShapeError, match="exactly 8 frames"):
        count(assemble(small()), Layout("video", 28, 28, frames=16))


def test_a_sampler_of_another_number_is_found_on_paper() -> None:
    vlmkit.check(small())
    with pytest.raises(ShapeError, match="exactly 8 frames together; this is a clip of 16"):
        vlmkit.check(small("video.sampler.frames=16"))
    with pytest.raises(ShapeError, match="exactly 8 frames together; this is a picture"):
        vlmkit.check(small(f"tower={{use: temporal, model: {GELU}, layer: -2, options: {json.dumps(SMALL)}}}"))


def test_a_convolution_has_no_blocks_for_it() -> None:
    with pytest.raises(vlmkit.PresetError, match="timm cannot make test_resnet"):
        temporal.Config(model="test_resnet").build()
