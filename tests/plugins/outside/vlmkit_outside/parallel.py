"""Attention and MLP side by side in each block, as in GPT-J and PaLM."""
from vlmkit.parts.decoders import transformer


class Config(transformer.Config):
    """As the transformer's."""
class Block(transformer.Block):
    def __init__(self, config, attention, std):
        super().__init__(config, attention, std)
        del self.mlp_norm
    def forward(self, x, lens, turn, cache=None):  # [total, width] -> the same; turn: cosine and sine of positions
        y = self.attn_norm(x)
        return x + self.attn(y, lens, turn, cache) + self.mlp(y)
class Parallel(transformer.Transformer):
    block = Block
def build(config, *, attention):
    return Parallel(config, attention)
EXAMPLE = transformer.EXAMPLE
