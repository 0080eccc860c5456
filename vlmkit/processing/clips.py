"""Clips from a path, bytes, a list of pictures or an array of frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..contracts import VideoSampler
from ..errors import MediaError
from .pictures import open_picture


class Frames:
    """Frames that are already pictures."""

    def __init__(self, frames: Sequence[Any], fps: float = 1.0) -> None:
        self._frames, self.frames, self.fps = frames, len(frames), fps
        first = open_picture(frames[0])
        self.width, self.height = first.size
        self.times = [i / fps for i in range(len(frames))]
        self.duration = self.frames / fps

    def choose(self, sampler: VideoSampler) -> list[int]:
        """All of them, unless the sampler wants fewer."""
        wanted = sampler.pick(self.frames, self.fps)
        return list(range(self.frames)) if self.frames <= len(wanted) else wanted

    def read(self, wanted: Sequence[int]) -> list[Image.Image]:
        return [open_picture(self._frames[i]) for i in wanted]


class Clip(Frames):
    def __init__(self, source: Any) -> None:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 1)
            frames = [f.to_image() for f in container.decode(stream)]
        super().__init__(frames, fps)

    def choose(self, sampler: VideoSampler) -> list[int]:
        return sampler.pick(self.frames, self.fps)


def probe(source: Any) -> Frames:
    """What a clip is, from its headers."""
    if isinstance(source, Frames):
        return source
    if isinstance(source, str | Path | bytes):
        if not isinstance(source, bytes) and not Path(source).is_file():
            error = MediaError("no such file", where=source)
            error.exit = 2
            raise error
        return Clip(source)
    return Frames(list(source) if isinstance(source, np.ndarray) else source)


def read_clip(source: Any, sampler: VideoSampler) -> tuple[list[Image.Image], list[float]]:
    """The frames a sampler picks, and when each is shown, in seconds."""
    clip = probe(source)
    wanted = clip.choose(sampler)
    return clip.read(wanted), [clip.times[i] for i in wanted]
