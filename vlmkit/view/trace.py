"""Where each visual token comes from: found by sending coordinates, instead of features, through the packer itself.

Packers move, pool and interpolate, so what arrives are the coordinates of the patches a token was made of, and
the gradient tells which patches no token was made of. No packer has to know about this.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Projector
from ..model.vlm import VLM
from ..types import Features, Layout

RANDOM = 32  # channels of noise: with max pooling, each patch is the largest of its window in one of them


class Token(NamedTuple):
    """One token of a visual.

    kind   patch, separator or prefix
    sheet  which sheet it lies on, see `sheets`
    y, x   its place there, in patches
    """

    kind: str
    sheet: int
    y: float
    x: float


class Trace(NamedTuple):
    """tokens in order; used: for each sheet, which patches became part of any token.   bool [rows, cols]"""

    tokens: list[Token]
    used: list[Tensor]


def sheets(tiles: Tensor, layout: Layout) -> list[Tensor]:
    """Tiles laid side by side as they lie in the picture: the whole one, then the grid; or one sheet a frame.

    [tiles, any, rows, cols] -> list of [any, all rows, all cols]
    """
    if layout.kind == "video" or not layout.rows:
        return list(tiles)
    grid = tiles[1:].unflatten(0, (layout.rows, layout.cols)).permute(2, 0, 3, 1, 4)
    return [tiles[0], grid.flatten(3).flatten(1, 2)]


def trace(model: VLM, layout: Layout) -> Trace | None:
    """The origin of every token of a visual; None when the packer has weights, which are made for features alone."""
    stream = model.stream(layout.kind)
    if isinstance(stream.packer, nn.Module) and any(True for _ in stream.packer.parameters()):
        return None
    (_, tower), (_, project) = model.part(layout.kind, "tower"), model.part(layout.kind, "projector")
    seen = tower(torch.empty(layout.tiles, 3, tower.side, tower.side, dtype=torch.uint8, device="meta"))
    where = coordinates(seen, layout).requires_grad_()
    separators = {name: torch.eye(where.shape[2])[4] for name in stream.packer.separators}
    packed = stream.packer(seen._replace(tokens=where), [layout], stand_in(project, tower.width), separators)[0]
    packed[:, 5:].sum().backward()
    assert where.grad is not None
    touched = (where.grad[:, seen.prefix :, 5:] != 0).any(-1).unflatten(1, (seen.rows, seen.cols))
    tokens = [_token(*row[:5]) for row in packed.detach().tolist()]
    return Trace(tokens, [sheet[0] for sheet in sheets(touched[:, None], layout)])


def coordinates(seen: Features, layout: Layout) -> Tensor:
    """Channels: sheet, y, x, is prefix, is separator, then noise.   [tiles, prefix + rows * cols, 5 + noise]"""
    rows, cols = seen.rows, seen.cols
    tile = torch.arange(layout.tiles)
    gridded = layout.kind == "image" and layout.rows > 0
    part = (tile - 1).clamp(min=0) if gridded else torch.zeros_like(tile)
    sheet = tile.clamp(max=1) if gridded else tile
    wide = max(layout.cols, 1)
    y = torch.arange(rows)[None, :, None] + (part // wide * rows)[:, None, None]
    x = torch.arange(cols)[None, None, :] + (part % wide * cols)[:, None, None]
    full = (layout.tiles, rows, cols)
    places = torch.stack([sheet[:, None, None].expand(full), y.expand(full), x.expand(full)], dim=-1).flatten(1, 2)
    places = F.pad(places.float(), (0, 2))
    prefix = torch.zeros(layout.tiles, seen.prefix, 5)
    prefix[:, :, 0], prefix[:, :, 3] = sheet[:, None], 1
    made = torch.cat([prefix, places], dim=1)
    noise = torch.rand(*made.shape[:2], RANDOM, generator=torch.Generator().manual_seed(0))
    return torch.cat([made, noise], dim=-1)


def stand_in(project: Projector, width: int) -> Projector:
    """Changes the number of tokens as the projector does, and nothing else."""

    def call(given: Features) -> Features:
        like = torch.empty(1, given.tokens.shape[1], width, device="meta")
        made = project(given._replace(tokens=like))
        if made.rows == given.rows and made.cols == given.cols and made.prefix == given.prefix:
            return given
        if made.rows:
            return Features.of_map(F.adaptive_avg_pool2d(given.map, (made.rows, made.cols)))
        blurred = given.tokens[:, given.prefix :].mean(1, keepdim=True)  # a query may look everywhere
        return made._replace(tokens=blurred.expand(-1, made.tokens.shape[1], -1))

    return cast(Projector, call)


def _token(sheet: float, y: float, x: float, prefix: float, separator: float) -> Token:
    kind = "separator" if separator > 0.5 else "prefix" if prefix > 0.5 else "patch"
    return Token(kind, round(sheet), y, x)
