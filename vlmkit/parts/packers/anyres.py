"""The whole picture, then its tiles put together again to one map, without padding, with a newline behind each row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlmkit.contracts import PartConfig, Projector
from vlmkit.errors import ShapeError
from vlmkit.types import Features, Layout

SLACK = 1.1  # maps up to this much larger than the budget (along one edge) stay; the released models learned so
CHANNELS = 128  # shrunk at a time, which needs less memory


class Config(PartConfig):
    """What happens to the map of the tiles."""

    unpad: bool = Field(True, description="cut away rows or columns that only held padding")
    newline: Literal["none", "row"] = Field("row", description="the newline vector: nowhere, or behind each row")
    budget: float | None = Field(None, gt=0, description="shrink the map to about so many tiles' worth of tokens")


class AnyRes(nn.Module):
    """LLaVA-NeXT without a budget, LLaVA-OneVision with one of 9 tiles."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.separators = () if config.newline == "none" else ("newline",)

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[tiles of all, tokens, width] -> one [tokens of the whole + rows * (cols + 1), out] for each visual"""
        features = project(features)
        if not features.rows:
            raise ShapeError("needs rows and columns", hint="pack with `flat`, or keep the grid when projecting")
        newline = separators["newline"].to(features.tokens) if self.separators else None
        tiles = torch.split(features.tokens, [layout.tiles for layout in layouts])
        return [self.pack(features._replace(tokens=own), layout, newline)
                for own, layout in zip(tiles, layouts, strict=True)]

    def pack(self, features: Features, layout: Layout, newline: Tensor | None) -> Tensor:
        """One picture.   [1 + rows * cols of tiles, tokens, out] -> [tokens, out]"""
        if not layout.rows or not layout.cols:  # the whole picture is all there is; a clip's frames come like this too
            whole = features.tokens.flatten(0, 1)
            return whole if newline is None else torch.cat([whole, newline[None]])
        flat, each = features.tokens.flatten(0, 1), features.tokens.shape[1]
        here = torch.arange(len(flat), device=flat.device)
        grid = assemble(features._replace(tokens=here.view(-1, each, 1)), layout)  # where each token of the map lies
        grid = (unpad(grid, layout) if self.config.unpad else grid)[..., 0]
        most = (self.config.budget or math.inf) * features.rows * features.cols
        if size := smaller(grid.shape[0], grid.shape[1], most):
            flat = torch.cat([flat[:each], shrink(flat, grid, size)])
            grid = torch.arange(each, len(flat), device=flat.device).view(size)
        if newline is not None:
            grid = F.pad(grid, (0, 1))
        packed = flat.index_select(0, torch.cat([here[:each], grid.flatten()]))  # the one copy that is made
        if newline is not None:
            packed[each:].view(*grid.shape, packed.shape[-1])[:, -1] = newline
        return packed


def assemble(features: Features, layout: Layout) -> Tensor:
    """Tiles 1, 2, ... to one map.   [1 + rows * cols of tiles, tokens, out] -> [all rows, all cols, out]"""
    patches = features.tokens[1:, features.prefix :]
    grid = patches.reshape(layout.rows, layout.cols, features.rows, features.cols, -1)
    return grid.transpose(1, 2).reshape(layout.rows * features.rows, layout.cols * features.cols, -1)


def unpad(grid: Tensor, layout: Layout) -> Tensor:
    """Cut away rows or columns that only held padding.   [rows, cols, out] -> [fewer rows or cols, out]"""
    rows, cols = grid.shape[:2]
    # to 7 decimals before truncating: transformers' rule; it keeps both ends of its processor and model equal
    if layout.width / layout.height > cols / rows:
        edge = (rows - int(round(layout.height * (cols / layout.width), 7))) // 2
        return grid[edge : rows - edge]
    edge = (cols - int(round(layout.width * (rows / layout.height), 7))) // 2
    return grid[:, edge : cols - edge]


def smaller(rows: int, cols: int, most: float) -> tuple[int, int] | None:
    """The size that a map of more than about `most` tokens shrinks to."""
    times = math.sqrt(rows * cols / most)
    return None if times <= SLACK else (max(1, int(rows // times)), max(1, int(cols // times)))


def shrink(flat: Tensor, grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, not antialiased.   [tokens, out], their places [rows, cols] -> [rows' * cols', out]"""
    planes = (some[grid].permute(2, 0, 1)[None].contiguous() for some in flat.split(CHANNELS, dim=1))
    # channels come first: torch adds in another order when they come last
    return torch.cat([F.interpolate(some, size, mode="bilinear")[0].flatten(1).T for some in planes], dim=1)


def build(config: Config, *, width: int, out: int) -> AnyRes:
    return AnyRes(config)


EXAMPLE = {"unpad": True, "newline": "row", "budget": 9}
