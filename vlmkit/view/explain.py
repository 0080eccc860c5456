"""The story of one file: how it is cut, which tokens it becomes, and what an answer looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model.vlm import VLM
from . import attention, shapes, tiles, tokens
from .page import Panel
from .trace import Trace, trace
from .visual import Planned


def panels(model: VLM, planned: Planned, pixels: Any) -> tuple[list[Panel], Trace | None]:
    """Tiles, tokens, shapes.   model: on the meta device; pixels uint8 [tiles, 3, side, side]"""
    layout, origin = planned.layout, trace(model, planned.layout)
    made = [Panel("Tiles", _cut(planned, origin), tiles.draw(pixels, layout, origin))]
    if origin is not None and len(origin.tokens) == planned.tokens:
        words = "In the order the decoder reads them, one line of the picture below the other."
        made.append(Panel("Tokens", words, tokens.draw(pixels, layout, origin)))
    table = Panel("Steps", "The shape after each step; the first name is the section of the preset.",
                  shapes.steps(model, layout))
    return [*made, table], origin


def looking(model: VLM, processor: Any, file: Path, kind: str, question: str, origin: Trace) -> Panel:
    """What each word of the answer looked at; the model has weights here, and eager attention."""
    content = [{"type": kind, kind: str(file)}, {"type": "text", "text": question}]
    found, batch = attention.looks(model, processor, [{"role": "user", "content": content}])
    answer = "".join(look.word for look in found).strip()
    return Panel(f"What “{answer}” looked at", f"Asked: {question} Mean over heads and layers; brightest is most.",
                 attention.draw(found, batch.visuals[0], origin))


def _cut(planned: Planned, origin: Trace | None) -> str:
    layout = planned.layout
    if layout.kind == "video":
        return f"{layout.frames} frames of a clip of {layout.height} x {layout.width} pixels."
    if not layout.rows:
        return "The whole picture is the only tile."
    lost = 0.0 if origin is None else 1 - float(origin.used[1].float().mean())
    thrown = f" {lost:.0%} of their patches are padding and thrown away." if lost else ""
    return f"The whole picture, and {layout.rows * layout.cols} tiles that see it closer.{thrown}"
