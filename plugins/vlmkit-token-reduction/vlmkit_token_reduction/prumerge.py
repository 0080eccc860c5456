"""The patches that matter most to the class token stay, and take the others in (after LLaVA-PruMerge)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.contracts import PartConfig, Projector
from vlmkit.types import Features, Layout

from .tome import pick


class Config(PartConfig):
    """How many stay."""

    keep: float = Field(0.25, gt=0, le=1, description="share of a tile's patches that stays")


class PruMerge(nn.Module):
    """Shang et al. 2024, with a share in place of their outliers: a length that depends on values cannot be planned."""

    separators: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.keep = config.keep

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[tiles of all, prefix + patches, width] -> one [tiles * kept, out] for each visual

        Without prefix tokens (`tower.prefix=keep` brings them) the mean of the patches takes the class token's place.
        """
        patches = features.tokens[:, features.prefix :]
        asks = (features.tokens[:, :1] if features.prefix else patches.mean(dim=1, keepdim=True)).float()
        kept = select(patches, asks, max(1, round(patches.shape[1] * self.keep)))
        tokens = project(Features(kept, 0, 0)).tokens
        return [own.flatten(0, 1) for own in tokens.split([layout.tiles for layout in layouts])]


def select(patches: Tensor, asks: Tensor, left: int) -> Tensor:
    """[tiles, n, width], float32 [tiles, 1, width] -> [tiles, left, width], in reading order"""
    x = patches.float()
    weight = (asks @ x.transpose(1, 2) / x.shape[2] ** 0.5).softmax(dim=-1)[:, 0]  # [tiles, n]
    order = weight.argsort(dim=-1, descending=True, stable=True)
    stay, gone = order[:, :left].sort(dim=-1).values, order[:, left:]
    if gone.shape[1] == 0:
        return patches
    unit = F.normalize(x.detach(), dim=-1)
    near = (pick(unit, gone) @ pick(unit, stay).transpose(1, 2)).argmax(dim=-1)  # the one that takes it in
    weighed = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) * weight[..., None]
    into = near[..., None].expand(-1, -1, weighed.shape[2])
    taken = pick(weighed, stay).scatter_add(1, into, pick(weighed, gone))
    return (taken[..., :-1] / taken[..., -1:].clamp(min=1e-9)).to(patches.dtype)


def build(config: Config, *, width: int, out: int) -> PruMerge:
    return PruMerge(config)


EXAMPLE = {"keep": 0.25}
