"""The origin of tokens, against what packers are known to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vlmkit
from vlmkit.model.assemble import assemble
from vlmkit.types import Layout
from vlmkit.view.shapes import steps
from vlmkit.view.trace import sheets, trace


def origin(preset: str, *words: str, layout: Layout | None = None, size: tuple[int, int] = (0, 0)) -> Any:
    model = assemble(vlmkit.compose(preset, *words))
    layout = layout or model.stream("image").tiler.plan(*size, True)
    found = trace(model, layout)
    assert found is not None
    return found


def test_anyres_unpads_and_ends_each_row() -> None:
    """OneVision, 768 x 1024: the whole picture is 27 x 27, the 2 x 3 tiles 54 x 81, of which 54 x 73 are picture."""
    found = origin("llava-onevision-qwen2-7b", size=(768, 1024))
    assert len(found.tokens) == 4725
    assert [t.kind for t in found.tokens].count("separator") == 54
    assert found.tokens[0][1:] == (0, 0.0, 0.0)
    assert found.tokens[728][1:] == (0, 26.0, 26.0)
    assert found.tokens[729][1:] == (1, 0.0, 4.0)  # (81 - 73) // 2 columns are cut on each side
    assert found.tokens[729 + 72][1:] == (1, 0.0, 76.0)
    assert found.tokens[729 + 73].kind == "separator"
    assert found.used[0].all()
    used = found.used[1]
    assert used.shape == (54, 81)
    assert used[:, 4:77].all()
    assert not used[:, :4].any()
    assert not used[:, 77:].any()


@pytest.mark.parametrize("preset", ["video-llava-7b-hf", "video-llava-7b"])  # the latter's tower takes whole clips
def test_flat_keeps_the_class_token_of_each_frame(preset: str) -> None:
    found = origin(preset, layout=Layout("video", 240, 320, frames=8))
    assert len(found.tokens) == 2056
    assert [i for i, t in enumerate(found.tokens) if t.kind == "prefix"] == [257 * i for i in range(8)]
    assert found.tokens[-1][1:] == (7, 15.0, 15.0)


def test_pooled_tokens_lie_between_their_patches() -> None:
    found = origin("llava-next-video-7b", layout=Layout("video", 240, 320, frames=2))
    assert len(found.tokens) == 2 * 144
    assert found.tokens[0][1:] == (0, 0.5, 0.5)
    assert found.tokens[13][1:] == (0, 2.5, 2.5)
    assert all(bool(used.all()) for used in found.used)


def test_max_pooling_loses_no_patch() -> None:
    found = origin("llava-next-video-7b", "video.packer.pool=max", layout=Layout("video", 240, 320, frames=1))
    assert bool(found.used[0].all())


def test_a_projector_may_change_the_number_of_tokens() -> None:
    found = origin("llava-1.5-7b", "projector={use: resampler, queries: 8}", size=(336, 336))
    assert len(found.tokens) == 8
    found = origin("llava-1.5-7b", "projector={use: pixel_shuffle}", size=(336, 336))
    assert len(found.tokens) == 144
    assert found.tokens[0][1:] == (0, 0.5, 0.5)


def test_a_packer_with_weights_has_no_trace() -> None:
    model = assemble(vlmkit.compose("llava-next-video-7b", "video.packer.pool=conv"))
    assert trace(model, Layout("video", 240, 320, frames=1)) is None


def test_what_does_not_fit_is_told() -> None:
    model = assemble(vlmkit.compose("llava-onevision-qwen2-7b", "projector=resampler"))
    with pytest.raises(vlmkit.ShapeError, match="rows and columns"):
        trace(model, Layout("image", 768, 1024, rows=2, cols=3))


def test_sheets_lay_tiles_side_by_side() -> None:
    tiles = torch.arange(7)[:, None, None, None].expand(7, 1, 2, 2)
    whole, grid = sheets(tiles, Layout("image", 9, 9, 2, 3))
    assert whole.unique().tolist() == [0]
    assert grid[0].tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


@pytest.mark.parametrize(("layout", "wanted"), [
    (Layout("image", 768, 1024, 2, 3), ["[7, 3, 384, 384]", "[7, 729, 1152]", "[7, 729, 3584]", "[4725, 3584]"]),
    (Layout("video", 9, 9, frames=32), ["[32, 3, 384, 384]", "[32, 729, 1152]", "[32, 729, 3584]", "[6273, 3584]"]),
])  # fmt: skip
def test_steps(layout: Layout, wanted: list[str]) -> None:
    """The numbers of the data-flow page."""
    model = assemble(vlmkit.compose("llava-onevision-qwen2-7b"))
    assert [step.shape for step in steps(model, layout)][1:] == wanted
