"""Each tile pooled to a few rows and columns, and a newline behind each."""
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from vlmkit.contracts import PartConfig
from vlmkit.types import Features


class Config(PartConfig):
    """How few."""
    edge: int = Field(4, ge=1, le=64, description="rows and columns that a tile becomes")
class Pooled(nn.Module):
    separators = ("newline",)
    def __init__(self, edge):
        super().__init__()
        self.edge = edge
    def forward(self, features, layouts, project, separators):
        """[tiles of all, tokens, width] -> one [tiles * (edge * edge + 1), out] for each picture or clip"""
        pooled = Features.of_map(F.adaptive_avg_pool2d(features.map, self.edge))
        tokens = project(pooled).tokens
        newline = separators["newline"].to(tokens).expand(len(tokens), 1, -1)
        tiles = torch.cat([tokens, newline], 1)
        return [own.flatten(0, 1) for own in tiles.split([layout.tiles for layout in layouts])]
def build(config, *, width, out):
    return Pooled(config.edge)
EXAMPLE = {"edge": 3}
