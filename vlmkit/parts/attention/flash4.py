"""FlashAttention 4 in the place of torch's own kernels, for the whole process. CUDA, Hopper and Blackwell."""

from __future__ import annotations

from vlmkit.contracts import PartConfig

from .varlen import Varlen


class Config(PartConfig):
    """No fields."""


def build(config: Config) -> Varlen:
    return Varlen("FA4")


EXAMPLE: dict[str, object] = {}
