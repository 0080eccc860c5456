"""Patches of 8 pixels through layers of attention."""
from pydantic import Field
from torch import nn

from vlmkit.contracts import PartConfig
from vlmkit.types import Features


class Config(PartConfig):
    """How large it is."""
    side: int = Field(64, ge=8, multiple_of=8, description="pixels along an edge of a tile")
    width: int = Field(32, ge=2, multiple_of=2, description="of a token")
    depth: int = Field(2, ge=1, description="blocks")
class Patches(nn.Module):
    mean, std, unused = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0
    def __init__(self, config):
        super().__init__()
        self.side, self.width, self.patch = config.side, config.width, nn.Conv2d(3, config.width, 8, 8)
        block = nn.TransformerEncoderLayer(config.width, 2, 4 * config.width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, config.depth).layers
    def forward(self, pixels):  # uint8 [tiles, 3, side, side] -> tokens [tiles, rows * cols, width]
        features = Features.of_map(self.patch((pixels.float() / 127.5 - 1).to(self.patch.weight.dtype)))
        for block in self.blocks:
            features = features._replace(tokens=block(features.tokens))
        return features
build, EXAMPLE = Patches, {"side": 32, "width": 16}
