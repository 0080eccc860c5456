"""FlashAttention 3 in the place of torch's own kernels, for the whole process. CUDA, Hopper."""

from __future__ import annotations

from vlmkit.contracts import PartConfig

from .varlen import Varlen


class Config(PartConfig):
    """No fields."""


def build(config: Config) -> Varlen:
    return Varlen("FA3")


EXAMPLE: dict[str, object] = {}
