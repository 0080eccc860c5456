"""So many frames for each second, up to a limit."""

from __future__ import annotations

import math

from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import MediaError

from .uniform import spread


class Config(PartConfig):
    """How often to look, and how often at most."""

    fps: float = Field(1.0, gt=0, description="frames for each second of the clip")
    most: int = Field(32, ge=1, le=4096, description="of a long clip so many frames, evenly spaced")


class Fps:
    """Evenly spaced by transformers' rule, i * total // n; never more frames than the clip has."""

    def __init__(self, config: Config) -> None:
        self.fps, self.most = config.fps, config.most

    def pick(self, frames: int, fps: float) -> list[int]:
        if not (fps > 0 and math.isfinite(fps)):
            raise MediaError(f"the clip's frame rate is {fps}; it has to be known to take {self.fps} frames a second",
                             hint="sample with `uniform`")
        wanted = int(min(frames / fps * self.fps, frames, self.most))
        return spread(frames, max(1, wanted), "floor")


def build(config: Config) -> Fps:
    return Fps(config)


EXAMPLE = {"fps": 1.0, "most": 8}
