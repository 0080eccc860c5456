"""What generation needs of a model and of a processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from ..model.features import FeatureCache
from ..types import Batch, Visual


class Tokens(Protocol):
    """The tokenizer of a processor."""

    size: int  # ids it knows; rows of the vocabulary behind them are spare

    def decode(self, ids: list[int]) -> str: ...


class Processor(Protocol):
    """Prepares a list of conversations."""

    tokenizer: Tokens
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]

    def __call__(self, conversations: Any) -> Batch: ...


class Model(Protocol):
    """An nn.Module. One without eyes is never asked to encode or splice."""

    decoder: Any

    def encode(self, visuals: list[Visual], cache: FeatureCache | None = None) -> list[Tensor]: ...

    def splice(self, ids: Tensor, slots: Tensor, seen: list[Tensor]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def modules(self) -> Iterable[Any]: ...
