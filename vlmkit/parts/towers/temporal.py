"""A timm vision transformer whose blocks first attend over the frames of a clip: Video-LLaVA's own clip tower."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field
from timm.layers import Attention
from timm.models.vision_transformer import Block as Spatial
from torch import Tensor, nn

from vlmkit.errors import ShapeError
from vlmkit.types import Features

from . import timm


class Config(timm.Config):
    """A timm vision transformer, and how long a clip is."""

    frames: int = Field(8, ge=2, le=512, description="of a clip, seen together; clips of another length are refused")


class Time(nn.Module):
    """Attention over the frames, at each place of the picture by itself."""

    def __init__(self, width: int, heads: int, frames: int, norm: Any) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, frames, width))  # added in every block, and it stays added
        self.norm = norm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        nn.init.normal_(self.embedding, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[clips * frames, tokens, width] -> the same"""
        clips = x.unflatten(0, (-1, self.embedding.shape[1])).transpose(1, 2)
        x = clips.flatten(0, 1) + self.embedding
        x = x + self.attn(self.norm(x))
        return x.view_as(clips).transpose(1, 2).flatten(0, 1)


class Block(Spatial):  # type: ignore[misc]
    """Over time, then as ever."""

    def __init__(self, dim: int, num_heads: int, frames: int, **more: Any) -> None:
        super().__init__(dim, num_heads, **more)
        self.time = Time(dim, num_heads, frames, more["norm_layer"])

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """[clips * frames, tokens, width] -> the same"""
        return super().forward(self.time(x), **how)  # type: ignore[no-any-return]


class Tower(timm.Tower):
    """Clips of one length, frame after frame."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, block_fn=partial(Block, frames=config.frames))
        self.frames = config.frames

    def forward(self, pixels: Tensor) -> Features:
        """uint8 [clips * frames, 3, side, side] -> tokens [clips * frames, prefix + rows * cols, width]"""
        if len(pixels) % self.frames:
            raise ShapeError(f"{len(pixels)} frames are no clips of {self.frames}", where="tower.frames")
        return super().forward(pixels)


def build(config: Config) -> Tower:
    return Tower(config)


EXAMPLE = {**timm.EXAMPLE, "frames": 2}
