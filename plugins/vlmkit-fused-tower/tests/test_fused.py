"""Towers side by side: what each sees, how tokens are joined, and faults told with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vlmkit_fused_tower import fused

import vlmkit
from vlmkit import registry
from vlmkit.compose.bind import bind_part
from vlmkit.errors import PresetValueError, ShapeError
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer
from vlmkit.testing import check_part

VIT = {"use": "timm", "model": "vit_tiny_patch16_224",
       "options": {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}}  # fmt: skip
NET = {"use": "timm", "model": "resnet10t", "layer": -2, "side": 64,
       "options": {"channels": [8, 8, 12, 8], "layers": [1, 1, 1, 1], "stem_width": 8}}  # fmt: skip


def made(*towers: dict[str, Any], **fields: Any) -> Any:
    torch.manual_seed(0)
    config: Any = bind_part(registry.find("tower", "fused"), {"towers": list(towers), **fields})
    return config.build().eval()


def pixels(side: int, tiles: int = 2) -> torch.Tensor:
    return torch.randint(256, (tiles, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_promises() -> None:
    assert {outcome.state for outcome in check_part("tower", "fused")} == {"passed"}


def test_by_channel_each_place_has_all_of_them() -> None:
    built = made(VIT, NET)
    assert (built.side, built.width) == (64, 16 + 12)
    with torch.no_grad():
        seen = pixels(64)
        out, small = built(seen), fused.resized(seen, 32)
        assert (out.rows, out.cols, out.tokens.shape) == (2, 2, (2, 4, 28))
        first, second = built.towers[0](small), built.towers[1](seen)
        assert torch.equal(out.tokens[..., :16], first.tokens)
        assert (second.rows, second.cols) == (4, 4)  # pooled to the first one's 2 x 2
        other = fused.fitted(second.map, 2, 2)
        torch.testing.assert_close(out.map[:, 16:], other)


def test_by_token_one_stands_behind_the_other() -> None:
    built = made(VIT, {**VIT, "prefix": "keep"}, join="token")
    with torch.no_grad():
        out = built(pixels(32))
        assert (out.tokens.shape, out.rows, out.prefix) == ((2, 4 + 5, 16), 0, 0)
        assert torch.equal(out.tokens[:, :4], built.towers[0](pixels(32)).tokens)
    with pytest.raises(ShapeError, match=r"widths \[16, 12\] cannot follow"):
        made(VIT, NET, join="token")


def test_pixels_are_smoothed_as_pillow_does() -> None:
    from PIL import Image

    seen = pixels(64, 1)
    theirs = Image.fromarray(seen[0].permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    ours = fused.resized(seen, 32)[0].permute(1, 2, 0)
    told = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(32, 32, 3)
    assert (ours.int() - told.int()).abs().max() <= 2


def test_what_is_not_built_is_told_once() -> None:
    alone: list[Any] = [bind_part(registry.find("tower", "timm"), one) for one in ({**VIT, "layer": -2}, NET)]
    built, unused = made({**VIT, "layer": -2}, NET), [config.build().unused for config in alone]
    assert min(unused) > 0
    assert built.unused == sum(unused)
    assert sum(getattr(part, "unused", 0) for part in built.modules()) == built.unused


def test_a_fault_inside_is_told_with_its_place() -> None:
    with pytest.raises(PresetValueError, match=r"tower\.towers\[1\]\.layr +command line +no such field.*did you mean"):
        vlmkit.compose("tiny", "tower={use: fused, towers: [{use: timm, model: x}, {use: timm, model: x, layr: 1}]}")
    with pytest.raises(PresetValueError, match=r"tower\.towers\[0\]\.use .*no tower named 'tim'"):
        vlmkit.compose("tiny", "tower={use: fused, towers: [{use: tim}, {use: timm, model: resnet10t}]}")


def test_the_preset() -> None:
    report = vlmkit.check("llava-1.5-7b-fused")
    assert report.tokens(336, 336) == 27 * 27
    assert report.shapes[0][2] == f"[1, 729, {1152 + 1024}]"


def test_a_model_with_it_is_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "vlmkit_fused_tower-0.1.0.dist-info"  # the version is written beside the weights
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vlmkit-fused-tower\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    preset = vlmkit.compose("tiny", f"tower={{use: fused, towers: [{shown(VIT)}, {shown(NET)}]}}", "weights=[]")
    model: Any = vlmkit.build(preset).eval()
    assert preset.tokenizer is not None
    processor = Processor(preset, model, Tokenizer.from_file(preset.tokenizer.from_))
    vlmkit.save(model, processor, tmp_path / "out")
    again, _ = vlmkit.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(model.tower(pixels(64)).tokens, again.tower(pixels(64)).tokens)


def shown(section: dict[str, Any]) -> str:
    return str(section).replace("'", "")
