"""What becomes of one picture or clip, step by step, as a table."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..model.vlm import VLM
from ..types import Layout


class Step(NamedTuple):
    """section: the name in the preset; part: what is chosen there"""

    section: str
    part: str
    shape: str
    note: str


def steps(model: VLM, layout: Layout) -> list[Step]:
    """From pixels to tokens, on the meta device, where all of them cost nothing."""
    stream, kind = model.stream(layout.kind), layout.kind
    tower = model.tower if stream.tower is None else stream.tower
    project = model.projector if stream.projector is None else stream.projector
    with torch.no_grad():
        seen = tower(torch.empty(layout.tiles, 3, tower.side, tower.side, dtype=torch.uint8, device="meta"))
        projected, packed = project(seen), model.pack(kind, seen, [layout])[0]
    cut = f"{layout.frames} frames" if kind == "video" else f"whole + {layout.rows} x {layout.cols}"
    return [
        Step("file", "", f"{layout.height} x {layout.width}", "height x width"),
        Step(f"{kind}.tiler", _name(stream.tiler), str([layout.tiles, 3, tower.side, tower.side]),
             cut if layout.tiles > 1 else "one tile"),
        Step("tower" if stream.tower is None else f"{kind}.tower", _name(tower), str(list(seen.tokens.shape)),
             f"{seen.rows} x {seen.cols} patches" + (f" + {seen.prefix}" if seen.prefix else "")),
        Step("projector" if stream.projector is None else f"{kind}.projector", _name(project),
             str(list(projected.tokens.shape)),
             f"{projected.rows} x {projected.cols}" if projected.rows else "no rows and columns"),
        Step(f"{kind}.packer", _name(stream.packer), str(list(packed.shape)), f"{len(packed)} tokens"),
    ]  # fmt: skip


def _name(part: object) -> str:
    """The file a part is written in is its name."""
    return type(part).__module__.rsplit(".", 1)[-1]
