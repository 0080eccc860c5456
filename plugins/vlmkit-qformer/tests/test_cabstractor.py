"""The C-Abstractor: what it is made of, what leaves, and what vlmkit expects of a projector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vlmkit_qformer import cabstractor

import vlmkit
from vlmkit.errors import ShapeError
from vlmkit.testing import check_part
from vlmkit.types import Features

SMALL = {"edge": 3, "hidden": 16, "depth": 1}


@pytest.mark.parametrize("name", ["qformer", "cabstractor"])
def test_promises(name: str) -> None:
    assert {outcome.state for outcome in check_part("projector", name)} == {"passed"}


def made(**fields: int) -> Any:
    torch.manual_seed(0)
    return cabstractor.build(cabstractor.Config.model_validate(SMALL | fields), width=8, out=6).eval()


def test_any_grid_becomes_the_same_grid_without_its_prefix() -> None:
    built = made()
    for rows, cols, prefix in ((6, 6, 0), (4, 9, 1), (2, 2, 5)):
        features = Features(torch.randn(2, prefix + rows * cols, 8), rows, cols, prefix)
        out = built(features)
        assert (out.tokens.shape, out.rows, out.cols, out.prefix) == ((2, 9, 6), 3, 3, 0)
        alone = built(features._replace(tokens=features.tokens[:, prefix:], prefix=0))
        assert torch.equal(alone.tokens, out.tokens)
    with pytest.raises(ShapeError, match="rows and columns"):
        built(Features(torch.randn(2, 9, 8), 0, 0))


def test_places_stay_where_they_are() -> None:
    # all blocks but the ways past them switched off, what is left is pooling: each corner is its own quarter
    built = made(edge=2, hidden=8)
    for stage in (built.before, built.after):
        for block in stage.children():
            torch.nn.init.zeros_(block.conv3.bn.weight)
            torch.nn.init.zeros_(block.conv3.bn.bias)
    numbers = torch.arange(1.0, 5.0)
    quarters = F.interpolate(numbers.view(1, 1, 2, 2), scale_factor=3).expand(1, 8, 6, 6)
    seen: list[torch.Tensor] = []
    built.out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    built(Features.of_map(quarters))
    torch.testing.assert_close(seen[0][0, :, 0], F.silu(F.silu(numbers)))  # once before, once after


def test_the_preset() -> None:
    report, base = vlmkit.check("llava-1.5-7b-cabstractor"), vlmkit.check("llava-1.5-7b")
    assert [report.tokens(height, width) for height, width in ((336, 336), (480, 640), (20, 2000))] == [144] * 3
    assert {name for name, count in report.parameters.items() if base.parameters[name] != count} == {"projector"}


def test_tiles_can_be_put_together_behind_it() -> None:
    report = vlmkit.check("llava-next-vicuna-7b", "projector={use: cabstractor, edge: 8}", "decoder.layers=1")
    # 480 x 640 is cut 2 x 2: 64 of the whole, then 16 x 16 unpadded to 12 x 16 with a newline behind each row
    assert report.tokens(480, 640) == 64 + 12 * 17
