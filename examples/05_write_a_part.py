"""A projector of your own, in one file, used by a preset that never heard of it."""

import torch
from pydantic import Field
from torch import nn

import vlmkit
from vlmkit.contracts import PartConfig
from vlmkit.types import Features, Layout, Visual


class Config(PartConfig):
    """A linear layer whose input is scaled by a learned gate."""

    start: float = Field(1.0, gt=0, description="what the gate is at first")


class Gated(nn.Module):
    def __init__(self, config: Config, width: int, out: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((width,), config.start))
        self.layer = nn.Linear(width, out)

    def forward(self, features: Features) -> Features:
        """[tiles, tokens, width] -> [tiles, tokens, out]"""
        return features._replace(tokens=self.layer(features.tokens * self.gate))


vlmkit.registry.add("projector", "gated", Config, lambda config, *, width, out: Gated(config, width, out))

preset = vlmkit.compose("tiny", "projector={use: gated, start: 0.5}")
model = vlmkit.build(preset)
picture = Visual(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), Layout("image", 64, 64))
print("parameters:", vlmkit.check(preset).parameters)
print("a black square becomes", list(model.encode([picture])[0].shape))
