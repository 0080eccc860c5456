"""What a file is, and what a model would make of it, from its header alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlmkit
from vlmkit.errors import MediaFormatError
from vlmkit.model.assemble import assemble
from vlmkit.types import Layout
from vlmkit.view.visual import is_clip, plan

MEDIA = Path(__file__).parents[2] / "examples" / "media"


@pytest.mark.parametrize(("head", "clip"), [
    (b"\0\0\0\x18ftypisom", True),
    (b"\0\0\0\x08wide\0\0\0\0mdat", True),  # an older MOV has no ftyp
    (b"\x1a\x45\xdf\xa3", True),
    (b"RIFF\x24\0\0\0AVI LIST", True),
    (b"RIFF\x24\0\0\0WEBPVP8 ", False),
    (b"\0\0\0\x18ftypavif", False),
    (b"\x89PNG\r\n\x1a\n", False),
], ids=str)  # fmt: skip
def test_a_clip_is_known_by_its_first_bytes(head: bytes, clip: bool, tmp_path: Path) -> None:
    (file := tmp_path / "file.bin").write_bytes(head + bytes(100))
    assert is_clip(file) == clip


def test_plans_fit_what_is_cut() -> None:
    model = assemble(vlmkit.compose("tiny"))
    shapes = plan(model, MEDIA / "shapes.png")
    assert (shapes.layout, shapes.tokens) == (Layout("image", 200, 220, rows=2, cols=2), 88)  # 16 + 8 * (8 + 1)
    move = plan(model, MEDIA / "move.mp4")
    assert (move.layout, move.tokens) == (Layout("video", 128, 128, frames=8), 33)  # 8 * 4, and a newline
    for planned in (shapes, move):
        assert planned.cut().shape == (planned.layout.tiles, 3, 64, 64)


def test_a_picture_nobody_reads_is_called_one(tmp_path: Path) -> None:
    (file := tmp_path / "new.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(100))
    with pytest.raises(MediaFormatError, match="read are PNG"):
        plan(assemble(vlmkit.compose("tiny")), file)
