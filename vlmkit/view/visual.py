"""A file as a model would take it: planned from its header, cut when somebody wants to see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MediaError, MediaFormatError
from ..model.rehearse import count
from ..model.vlm import VLM
from ..processing.containers import demuxer
from ..processing.files import open_file
from ..processing.media import look, probe
from ..types import Layout


class Planned(NamedTuple):
    """tokens: how many it becomes; cut: its pixels, uint8 [tiles, 3, side, side]"""

    path: Path
    layout: Layout
    tokens: int
    cut: Callable[[], Tensor]


def plan(model: VLM, path: Path, alone: bool = True) -> Planned:
    """No pixels are read yet; `model` may be on the meta device."""
    made = _clip(model, path) if is_clip(path) else _picture(model, path, alone)
    return Planned(path, made[0], count(model, made[0]), made[1])


def is_clip(path: Path) -> bool:
    """By its first bytes, whatever its name; how large it is matters to who reads on."""
    with open_file(path, math.inf, "") as file:
        try:
            demuxer(file)
        except MediaFormatError:
            return False
    return True


def _picture(model: VLM, path: Path, alone: bool) -> tuple[Layout, Callable[[], Tensor]]:
    tiler, picture = model.stream("image").tiler, look(path)
    layout = tiler.plan(picture.height, picture.width, alone)
    return layout, lambda: tiler.cut(picture.decode(), layout)


def _clip(model: VLM, path: Path) -> tuple[Layout, Callable[[], Tensor]]:
    stream, clip = model.stream("video"), probe(path)
    if stream.sampler is None:
        raise MediaError("this model takes no clips", where=path)
    wanted = clip.choose(stream.sampler)
    layout = Layout("video", clip.height, clip.width, frames=len(wanted))
    frame = stream.tiler.plan(clip.height, clip.width, False)
    return layout, lambda: torch.cat([stream.tiler.cut(picture, frame) for picture in clip.read(wanted)])
