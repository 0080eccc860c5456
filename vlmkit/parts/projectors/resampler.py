"""A fixed number of learned queries that read all tokens of a tile (a perceiver)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlmkit.contracts import PartConfig
from vlmkit.errors import ShapeError
from vlmkit.types import Features


class Config(PartConfig):
    """How many queries, and how often they look."""

    queries: int = Field(64, ge=1, le=65536, description="tokens a tile becomes; they have no rows and columns")
    depth: int = Field(2, ge=1, le=64, description="how often the queries look")
    heads: int = Field(8, ge=1, description="of the attention; divides the decoder's width")


class Look(nn.Module):
    """Queries read the tokens once, then think about it."""

    def __init__(self, out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(out)
        self.q, self.kv, self.o = nn.Linear(out, out), nn.Linear(out, 2 * out), nn.Linear(out, out)
        self.mlp = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 4 * out), nn.GELU(), nn.Linear(4 * out, out))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """[tiles, queries, out], [tiles, tokens, out] -> [tiles, queries, out]"""
        k, v = self.kv(tokens).chunk(2, dim=-1)
        heads = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(self.norm(queries)), k, v)]
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        queries = queries + self.o(read)
        thought: Tensor = self.mlp(queries)
        return queries + thought


class Resampler(nn.Module):
    """width -> out; however many tokens come, `queries` leave."""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        if out % config.heads:
            raise ShapeError(f"{config.heads} heads do not divide a width of {out}", where="projector.heads")
        self.queries = nn.Parameter(torch.randn(config.queries, out) * 0.02)  # the spread of a ViT's embeddings
        self.enter = nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out))
        self.looks = nn.ModuleList(Look(out, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(out)

    def forward(self, features: Features) -> Features:
        """[tiles, tokens, width] -> [tiles, queries, out], without rows and columns"""
        tokens = self.enter(features.tokens)
        x = self.queries.expand(len(tokens), -1, -1)
        for look in self.looks:
            x = look(x, tokens)
        return Features(self.norm(x), 0, 0)


def build(config: Config, *, width: int, out: int) -> Resampler:
    return Resampler(config, width, out)


EXAMPLE = {"queries": 4, "depth": 1, "heads": 2}
