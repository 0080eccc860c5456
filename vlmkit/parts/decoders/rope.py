"""Rotary positions: angles from positions, in float32, never stored in a buffer that a cast could touch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from vlmkit.contracts import PartConfig


class Rope(BaseModel):
    """How a decoder reaches further than it was trained."""

    model_config = PartConfig.model_config

    type: Literal["none", "linear", "dynamic", "llama3"] = Field("none", description="the rule that stretches")
    factor: float = Field(1.0, ge=1, description="how many times further")
    low: float = Field(1.0, gt=0, description="llama3: waves with fewer turns in `original` are stretched")
    high: float = Field(4.0, gt=0, description="llama3: waves with more turns in `original` are kept")
    original: int | None = Field(None, ge=1, description="llama3, dynamic: the context before stretching")


@lru_cache(maxsize=16)  # asked at every step
def frequencies(head: int, theta: float, rope: Rope, context: int, device: torch.device) -> Tensor:
    """Radians per position.   float32 [head / 2]"""
    with torch.inference_mode(False):  # kept between calls, so it must also serve one that learns
        return _frequencies(head, theta, rope, context, device)


def _frequencies(head: int, theta: float, rope: Rope, context: int, device: torch.device) -> Tensor:
    exponent = torch.arange(0, head, 2, dtype=torch.int64, device=device).float() / head
    waves = 1.0 / theta**exponent
    if rope.type == "linear":
        return waves / rope.factor
    return _stretch(waves, rope, rope.original or context) if rope.type == "llama3" else waves


def _stretch(waves: Tensor, rope: Rope, original: int) -> Tensor:
    """Llama 3.1: long waves divided by the factor, short ones kept, a ramp between.   [head / 2]"""
    length = 2 * math.pi / waves
    share = (original / length - rope.low) / (rope.high - rope.low)
    between = (1 - share) * waves / rope.factor + share * waves
    found = torch.where(length > original / rope.low, waves / rope.factor, between)
    return torch.where(length < original / rope.high, waves, found)


def grown(head: int, theta: float, rope: Rope, context: int, ends: Tensor) -> Tensor:
    """Dynamic: the base grows with the token's own sequence.   its length [total] -> [total, head / 2]"""
    exponent = torch.arange(0, head, 2, dtype=torch.int64, device=ends.device).float() / head
    original = rope.original or context
    times = rope.factor * ends.clamp(min=original).float() / original - (rope.factor - 1)
    return 1.0 / (theta * times ** (head / (head - 2)))[:, None] ** exponent


def angles(positions: Tensor, waves: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine as `rotate` takes them.   [total], [head / 2] or [total, head / 2] -> [total, 1, head] each"""
    both = torch.cat((-waves, waves), -1)  # a cosine does not mind the sign, and the first half's sine wants it
    turned = (positions.float()[:, None] * both)[:, None]
    return turned.cos().to(dtype), turned.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head / 2).   x [total, heads, head]   cos, sin [total, 1, head] as from `angles`"""
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))
