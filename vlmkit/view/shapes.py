"""What becomes of one picture or clip, step by step, as a table."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..model.rehearse import name_of
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
    tower_at, tower = model.part(kind, "tower")
    projector_at, project = model.part(kind, "projector")
    with torch.no_grad():
        seen = tower(torch.empty(layout.tiles, 3, tower.side, tower.side, dtype=torch.uint8, device="meta"))
        projected, packed = project(seen), model.pack(kind, seen, [layout])[0]
    cut = f"{layout.frames} frames" if kind == "video" else f"whole + {layout.rows} x {layout.cols}"
    return [
        Step("file", "", f"{layout.height} x {layout.width}", "height x width"),
        Step(f"{kind}.tiler", name_of(stream.tiler), str([layout.tiles, 3, tower.side, tower.side]),
             cut if layout.tiles > 1 else "one tile"),
        Step(tower_at, name_of(tower), str(list(seen.tokens.shape)),
             f"{seen.rows} x {seen.cols} patches" + (f" + {seen.prefix}" if seen.prefix else "")),
        Step(projector_at, name_of(project), str(list(projected.tokens.shape)),
             f"{projected.rows} x {projected.cols}" if projected.rows else "no rows and columns"),
        Step(f"{kind}.packer", name_of(stream.packer), str(list(packed.shape)), f"{len(packed)} tokens"),
    ]  # fmt: skip
