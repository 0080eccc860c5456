"""The whole picture and its tiles seen as one map of two scales, at the cost of one (after S2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.contracts import PartConfig, Projector
from vlmkit.parts.packers.anyres import assemble, unpad
from vlmkit.types import Features, Layout


class Config(PartConfig):
    """No fields: the tiler decides how large the larger scale is."""


class Scales(nn.Module):
    """Shi et al. 2024: channels of both scales, side by side, mixed by one linear layer back to the tower's width."""

    separators: tuple[str, ...] = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width, bias=False)
        with torch.no_grad():  # at first the mean of both, which the projector knows how to read
            self.mix.weight.copy_(torch.eye(width).repeat(1, 2) / 2)

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[tiles of all, prefix + rows * cols, width] -> one [rows * cols (* frames), out] for each visual"""
        own = features.tokens.split([layout.tiles for layout in layouts])
        tiles = (features._replace(tokens=tokens) for tokens in own)
        seen = [self.join(some, layout) for some, layout in zip(tiles, layouts, strict=True)]
        mixed = Features(self.mix(torch.cat(seen)), features.rows, features.cols)
        counts = [len(one) for one in seen]
        return [tokens.flatten(0, 1) for tokens in project(mixed).tokens.split(counts)]

    def join(self, features: Features, layout: Layout) -> Tensor:
        """[tiles, prefix + rows * cols, width] -> [1 or frames, rows * cols, 2 * width]"""
        whole = features.map if layout.kind == "video" else features.map[:1]
        fine = whole
        if layout.rows and layout.cols:
            grid = unpad(assemble(features, layout), layout)  # [all rows, all cols, width]
            fine = F.adaptive_avg_pool2d(grid.permute(2, 0, 1)[None], (features.rows, features.cols))
        return torch.cat([whole, fine], dim=1).flatten(2).transpose(1, 2)


def build(config: Config, *, width: int, out: int) -> Scales:
    return Scales(width)


EXAMPLE: dict[str, object] = {}
