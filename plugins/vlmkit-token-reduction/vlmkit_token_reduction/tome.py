"""Tokens of a tile that are alike become one, until a share of them is left (ToMe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.contracts import PartConfig, Projector
from vlmkit.types import Features, Layout


class Config(PartConfig):
    """How many are left, and where they are merged."""

    keep: float = Field(0.25, gt=0, le=1, description="share of a tile's patches that is left")
    when: Literal["before", "after"] = Field("before", description="merge before or after the projector")


class ToMe(nn.Module):
    """Bolya et al. 2023, on the tower's last tokens: as many merges as it takes, in reading order again at the end."""

    separators: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.keep, self.when = config.keep, config.when

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[tiles of all, prefix + patches, width] -> one [tiles * kept, out] for each visual; no prefix tokens"""
        if self.when == "after":
            features = project(features)
        tokens = merge(features.tokens[:, features.prefix :], self.keep)
        if self.when == "before":
            tokens = project(Features(tokens, 0, 0)).tokens
        return [own.flatten(0, 1) for own in tokens.split([layout.tiles for layout in layouts])]


def merge(tokens: Tensor, keep: float) -> Tensor:
    """Means of tokens that are alike, each weighed with how many it stands for.   [tiles, n, w] -> [tiles, kept, w]"""
    left = max(1, round(tokens.shape[1] * keep))
    x, many = tokens.float(), tokens.new_ones(tokens.shape[:2], dtype=torch.float32)[..., None]
    while x.shape[1] > left:
        x, many = once(x, many, min(x.shape[1] - left, x.shape[1] // 2))
    return x.to(tokens.dtype)


def once(x: Tensor, many: Tensor, fewer: int) -> tuple[Tensor, Tensor]:
    """Every second token looks for its like among the others; the `fewer` nearest pairs become one.

    x [tiles, n, width]   many [tiles, n, 1], how many each stands for -> the same with n - fewer
    """
    unit = F.normalize(x.detach(), dim=-1)
    near, to = (unit[:, 1::2] @ unit[:, ::2].transpose(1, 2)).max(dim=-1)  # for each odd one, the even one most like it
    order = near.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :fewer], order[:, fewer:].sort(dim=-1).values
    weight = torch.cat([x * many, many], dim=-1)
    even, odd = weight[:, ::2], weight[:, 1::2]
    into = to.gather(1, gone)[..., None].expand(-1, -1, weight.shape[2])
    even = even.scatter_add(1, into, pick(odd, gone))
    places = torch.cat([torch.arange(0, x.shape[1], 2, device=x.device).expand(len(x), -1), stay * 2 + 1], dim=1)
    both = pick(torch.cat([even, pick(odd, stay)], dim=1), places.argsort(dim=1))
    return both[..., :-1] / both[..., -1:], both[..., -1:]


def pick(x: Tensor, places: Tensor) -> Tensor:
    """[tiles, n, width], [tiles, some] -> [tiles, some, width]"""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def build(config: Config, *, width: int, out: int) -> ToMe:
    return ToMe(config)


EXAMPLE = {"keep": 0.25}
