"""One linear layer."""

from __future__ import annotations

from torch import nn

from vlmkit.contracts import PartConfig
from vlmkit.types import Features


class Config(PartConfig):
    """Nothing to choose."""


class Linear(nn.Module):
    """width -> out, as in the first LLaVA."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, features: Features) -> Features:
        """[tiles, tokens, width] -> [tiles, tokens, out]"""
        return features._replace(tokens=self.linear(features.tokens))


def build(config: Config, *, width: int, out: int) -> Linear:
    return Linear(width, out)


EXAMPLE: dict[str, object] = {}
