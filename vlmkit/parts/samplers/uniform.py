"""A fixed number of frames, evenly spaced."""

from __future__ import annotations

from typing import Literal

import numpy
from pydantic import Field

from vlmkit.contracts import PartConfig


class Config(PartConfig):
    """How many, and whether the last frame is among them."""

    frames: int = Field(8, ge=1, le=4096, description="of every clip, however long it is")
    rule: Literal["floor", "linspace"] = Field(
        "floor", description="floor: i * total // frames, as transformers; linspace: first to last, as the authors")


class Uniform:
    """A clip shorter than asked repeats frames (transformers raises instead), so the count never changes."""

    def __init__(self, config: Config) -> None:
        self.frames, self.rule = config.frames, config.rule

    def pick(self, frames: int, fps: float) -> list[int]:
        return spread(frames, self.frames, self.rule)


def spread(total: int, wanted: int, rule: str) -> list[int]:
    """`wanted` positions out of `total`, in order."""
    if rule == "floor":
        return [i * total // wanted for i in range(wanted)]
    return [int(i) for i in numpy.linspace(0, total - 1, wanted)]  # numpy's own rounding: the authors' positions


def build(config: Config) -> Uniform:
    return Uniform(config)


EXAMPLE = {"frames": 8}
