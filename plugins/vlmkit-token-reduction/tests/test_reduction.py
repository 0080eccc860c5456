"""Merging, selecting and two scales, on examples that are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vlmkit_token_reduction import prumerge, scales, tome

import vlmkit
from vlmkit.testing import check_part
from vlmkit.types import Features, Layout

PICTURE = Layout("image", 60, 80)


@pytest.mark.parametrize("name", ["tome", "prumerge", "scales"])
def test_promises(name: str) -> None:
    assert {outcome.state for outcome in check_part("packer", name)} <= {"passed", "skipped"}


def packed(packer: Any, tokens: Tensor, rows: int, cols: int, prefix: int = 0, layout: Layout = PICTURE) -> Tensor:
    (found,) = packer(Features(tokens, rows, cols, prefix), [layout], lambda features: features, {})
    return found  # type: ignore[no-any-return]


def test_the_two_that_are_most_alike_become_their_mean() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [-1.0, 1.0]]])
    # odd ones are 1 and 3; 1 is just like 2, 3 is less like it
    assert tome.merge(x, 0.75).tolist() == [[[1.0, 0.0], [0.0, 2.5], [-1.0, 1.0]]]


def test_a_mean_weighs_all_that_it_stands_for() -> None:
    x = torch.tensor([[[0.0, 4.0], [0.0, 1.0], [0.0, 1.0], [0.0, 2.0]]])
    assert tome.merge(x, 0.25).tolist() == [[[0.0, 2.0]]]
    noise = torch.randn(3, 50, 8, dtype=torch.float64).float()
    one, many = tome.once(noise, torch.ones(3, 50, 1), 20)
    assert many.sum(1).flatten().tolist() == [50] * 3
    torch.testing.assert_close((one * many).sum(1), noise.sum(1))  # nothing is lost


@pytest.mark.parametrize(("keep", "left"), [(1.0, 36), (0.75, 27), (0.5, 18), (0.25, 9), (0.001, 1)])
def test_a_share_is_left(keep: float, left: int) -> None:
    for module in (tome, prumerge):
        packer = module.build(module.Config(keep=keep), width=4, out=4)
        x = torch.randn(1, 37, 4)
        out = packed(packer, x, 6, 6, prefix=1)
        assert out.shape == (left, 4)
        if keep == 1:
            assert torch.equal(out, x[0, 1:])


def test_what_the_class_token_looks_at_stays_and_takes_the_others_in() -> None:
    cls = [4.0, 0.0]
    patches = [[1.0, 1.0], [3.0, 0.0], [0.0, 3.0], [2.0, 2.0]]
    x = torch.tensor([[cls, *patches]])
    weight = (torch.tensor(patches) @ torch.tensor(cls) / 2**0.5).softmax(0)
    out = packed(prumerge.build(prumerge.Config(keep=0.5), width=2, out=2), x, 2, 2, prefix=1)
    stay, taken = torch.tensor(patches), [[1], [3, 0, 2]]  # 0 is just as 3 is, 2 is nearer to 3 than to 1
    wanted = [sum(stay[i] * weight[i] for i in some) / sum(weight[i] for i in some) for some in taken]
    torch.testing.assert_close(out, torch.stack(wanted))  # type: ignore[arg-type]


def test_both_scales_lie_on_each_other() -> None:
    packer = scales.build(scales.Config(), width=1, out=1)
    whole = torch.full((1, 4, 1), 10.0)
    tiles = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 1)  # 2 x 2 tiles of 2 x 2 patches, each of one number
    out = packed(packer, torch.cat([whole, tiles]), 2, 2, layout=Layout("image", 64, 64, 2, 2))
    assert out.flatten().tolist() == [5.0, 5.5, 6.0, 6.5]
    wide = packed(packer, torch.cat([whole, tiles[:2]]), 2, 2, layout=Layout("image", 32, 64, 1, 2))
    assert wide.flatten().tolist() == [5.0, 5.5, 5.0, 5.5]  # the left tile is the left half
    assert packed(packer, whole, 2, 2).flatten().tolist() == [10.0] * 4


@pytest.mark.parametrize(("preset", "tokens"), [("tome", 144), ("prumerge", 144), ("scales", 576)])
def test_presets(preset: str, tokens: int) -> None:
    report = vlmkit.check(f"llava-1.5-7b-{preset}")
    assert [report.tokens(height, width) for height, width in ((336, 336), (480, 640), (1000, 300))] == [tokens] * 3


def test_a_trained_model_goes_on_answering() -> None:
    model, processor = vlmkit.load("tiny", "image.packer={use: tome, keep: 0.5}", "video=null")
    from PIL import Image

    asked = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64), "red")},
                                          {"type": "text", "text": "What is it?"}]}]  # fmt: skip
    (answer,) = vlmkit.generate(model, processor, [asked], max_new_tokens=4, details=True)
    assert answer.visual_tokens == 2 * 8  # the whole picture and its one tile, half of 16 tokens each
    assert answer.text
