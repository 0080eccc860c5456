"""Every frame pooled, then one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlmkit.contracts import PartConfig, Projector
from vlmkit.types import Features, Layout

TURN = 8  # frames at a time: before they are pooled they take several times the memory


class Config(PartConfig):
    """How a frame shrinks, and where separators stand."""

    pool: Literal["average", "max", "conv", "bilinear", "none"] = Field(
        "average", description="how patches become one; conv is learned")
    stride: int = Field(2, ge=1, description="patches along an edge that become one; bilinear rounds up, others down")
    when: Literal["before", "after"] = Field("before", description="pool before or after the projector")
    newline: Literal["none", "end", "row", "frame"] = Field(
        "none", description="the newline vector: nowhere, behind the last token, each row or each frame")


class Frames(nn.Module):
    """LLaVA-NeXT-Video pools before the projector, LLaVA-OneVision and LLaVA-Video after it."""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        self.config = config
        self.separators = () if config.newline == "none" else ("newline",)
        self.conv = None
        if config.pool == "conv":
            size = width if config.when == "before" else out
            self.conv = nn.Conv2d(size, size, kernel_size=config.stride, stride=config.stride)

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[frames of all, tokens, width] -> one [tokens, out] for each visual; pooling drops prefix tokens"""
        first, then = (self.shrink, project) if self.config.when == "before" else (project, self.shrink)
        turns = [then(first(features._replace(tokens=some))) for some in features.tokens.split(TURN)]
        features = turns[0]._replace(tokens=torch.cat([turn.tokens for turn in turns]))
        newline = separators["newline"].to(features.tokens) if self.separators else None
        tokens = separate(features, newline, self.config.newline)
        clips = [frames.flatten(0, 1) for frames in torch.split(tokens, [layout.tiles for layout in layouts])]
        if self.config.newline != "end" or newline is None:
            return clips
        return [torch.cat([clip, newline[None]]) for clip in clips]

    def shrink(self, features: Features) -> Features:
        """[frames, tokens, any] -> [frames, fewer tokens, any]"""
        if self.conv is not None:
            return Features.of_map(self.conv(features.map))
        return pool(features, self.config.pool, self.config.stride)


POOLS: dict[str, Callable[..., Tensor]] = {"average": F.avg_pool2d, "max": F.max_pool2d}


def pool(features: Features, how: str, stride: int) -> Features:
    """Each patch map by itself.   [frames, rows * cols, any] -> [frames, fewer rows * cols, any]"""
    if how == "none":
        return features
    if how == "bilinear":
        size = -(-features.rows // stride), -(-features.cols // stride)
        planes = features.map.contiguous()  # torch adds in another order when channels come last
        return Features.of_map(F.interpolate(planes, size, mode="bilinear"))
    return Features.of_map(POOLS[how](features.map, stride))


def separate(features: Features, newline: Tensor | None, where: str) -> Tensor:
    """A newline behind each row or each frame.   [frames, tokens, out] -> [frames, more tokens, out]"""
    frames = len(features.tokens)
    if newline is None or where not in ("row", "frame"):
        return features.tokens
    if where == "frame":
        return torch.cat([features.tokens, newline.expand(frames, 1, -1)], dim=1)
    rows = features.map.permute(0, 2, 3, 1)
    return torch.cat([rows, newline.expand(frames, features.rows, 1, -1)], dim=2).flatten(1, 2)


def build(config: Config, *, width: int, out: int) -> Frames:
    return Frames(config, width, out)


EXAMPLE = {"pool": "average", "stride": 2, "when": "before"}
