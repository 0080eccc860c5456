"""All tokens of all tiles, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlmkit.contracts import PartConfig, Projector
from vlmkit.types import Features, Layout


class Config(PartConfig):
    """Nothing but a separator."""

    newline: Literal["none", "end"] = Field("none", description="the newline vector: nowhere, or behind the last token")


class Flat(nn.Module):
    """Tokens as they come, with the class token where the tower keeps it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.newline = config.newline
        self.separators = () if config.newline == "none" else ("newline",)

    def forward(self, features: Features, layouts: list[Layout], project: Projector,
                separators: Mapping[str, Tensor]) -> list[Tensor]:
        """[tiles of all, tokens, width] -> one [its tiles * tokens (+ 1), out] for each visual"""
        tokens = project(features).tokens
        packed = [tiles.flatten(0, 1) for tiles in torch.split(tokens, [layout.tiles for layout in layouts])]
        if self.newline == "none":
            return packed
        newline = separators["newline"].to(tokens)[None]
        return [torch.cat([one, newline]) for one in packed]


def build(config: Config, *, width: int, out: int) -> Flat:
    return Flat(config)


EXAMPLE = {"newline": "none"}
