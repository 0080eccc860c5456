"""Learned queries that talk to each other and read the tokens of a tile, as in BLIP-2 (a Q-Former)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmkit.contracts import PartConfig
from vlmkit.types import Features

EPS = 1e-12  # of BERT's norms, and so of BLIP-2's
SPREAD = 0.02  # of BERT's weights when they are drawn


class Config(PartConfig):
    """A stack of BERT's size; the defaults are those of BLIP-2."""

    queries: int = Field(32, ge=1, le=65536, description="tokens a tile becomes; they have no rows and columns")
    width: int = Field(768, ge=1, description="of the queries, between the tower's and the decoder's")
    depth: int = Field(12, ge=1, le=256, description="blocks")
    heads: int = Field(12, ge=1, description="of every attention; divides `width`")
    ffn: int = Field(3072, ge=1, description="width inside the MLP")
    every: int = Field(2, ge=1, description="one block in so many looks at the tile, beginning with the first")

    @model_validator(mode="after")
    def _divides(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        return self


class Attention(nn.Module):
    """Queries read something, add what they read, and are normalised."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(source, width), nn.Linear(source, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[tiles, queries, width], [tiles, tokens, source] -> [tiles, queries, width]"""
        projected = (self.q(x), self.k(tokens), self.v(tokens))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        added: Tensor = self.norm(x + self.o(read))
        return added


class Block(nn.Module):
    """Queries talk to each other, look at the tile (when the block has eyes), and think. Norms come last."""

    def __init__(self, config: Config, source: int, looks: bool) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.attn = Attention(width, width, heads)
        self.look = Attention(width, source, heads) if looks else None
        self.mlp = nn.Sequential(nn.Linear(width, config.ffn), nn.GELU(), nn.Linear(config.ffn, width))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[tiles, queries, width], [tiles, tokens, source] -> [tiles, queries, width]"""
        x = self.attn(x, x)
        if self.look is not None:
            x = self.look(x, tokens)
        thought: Tensor = self.norm(x + self.mlp(x))
        return thought


class QFormer(nn.Module):
    """width -> config.width -> out; however many tokens come, `queries` leave."""

    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.queries, config.width) * SPREAD)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.blocks = nn.ModuleList(Block(config, width, i % config.every == 0) for i in range(config.depth))
        self.out = nn.Linear(config.width, out)
        self.apply(_draw)

    def forward(self, features: Features) -> Features:
        """[tiles, tokens, width] -> [tiles, queries, out], without rows and columns; prefix tokens are read, too"""
        x = self.norm(self.queries).expand(len(features.tokens), -1, -1)
        for block in self.blocks:
            x = block(x, features.tokens)
        return Features(self.out(x), 0, 0)


def _draw(module: nn.Module) -> None:
    """Weights as BERT starts them."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=SPREAD)
        nn.init.zeros_(module.bias)


def build(config: Config, *, width: int, out: int) -> QFormer:
    return QFormer(config, width, out)


EXAMPLE = {"queries": 4, "width": 16, "depth": 2, "heads": 2, "ffn": 32}
