"""One linear layer behind a learned gate."""
import torch
from pydantic import Field
from torch import nn

from vlmkit.contracts import PartConfig


class Config(PartConfig):
    """How it begins."""
    start: float = Field(1.0, gt=0, description="what the gate is at first")
class Gated(nn.Module):
    def __init__(self, start, width, out):
        super().__init__()
        self.gate, self.layer = nn.Parameter(torch.full((width,), start)), nn.Linear(width, out)
    def forward(self, features):  # [tiles, tokens, width] -> [tiles, tokens, out]
        return features._replace(tokens=self.layer(features.tokens * self.gate))
def build(config, *, width, out):
    return Gated(config.start, width, out)
EXAMPLE = {"start": 1.0}
