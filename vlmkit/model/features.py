"""What pictures and clips were to the decoder, kept by their content: a second question about one runs no tower."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..limits import MiB
from ..types import Visual

if TYPE_CHECKING:
    from .vlm import VLM

PROBED = 32  # numbers of each weight that are looked at


class FeatureCache:
    """Packed tokens by pixels and layout, for one model at a time.

    most  bytes that are kept; what was not asked for longest leaves first

    It is for answering only: while gradients are recorded or a part of the vision path is training nothing is kept
    and nothing given. It empties itself when a weight of that path is another one than before. Steps of optimizers,
    writes in place, loads and moves are all seen; only who writes a few numbers through `.data` must call `clear`.
    Hooks on a tower see nothing of what the cache gives; those on a stream's `tokens` do.
    """

    def __init__(self, most: int = 512 * MiB) -> None:
        self.most, self.bytes, self.hits, self.misses = most, 0, 0, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._weights: Weights | None = None

    def clear(self) -> None:
        self._kept.clear()
        self.bytes, self._weights = 0, None

    def fill(self, model: VLM, visuals: list[Visual], encode: Callable[[list[Visual]], list[Tensor]]) -> list[Tensor]:
        """What is known of the visuals, the rest from `encode`, once.   list of [tokens, width], only to be read"""
        weights = Weights.of(model)
        if self._weights is None or not weights.same(self._weights):
            self.clear()
            self._weights = weights
        keys = [key(visual) for visual in visuals]
        found = {k: self._kept[k] for k in keys if k in self._kept}
        new = {k: visual for k, visual in zip(keys, visuals, strict=True) if k not in found}
        self.hits, self.misses = self.hits + len(keys) - len(new), self.misses + len(new)
        for k in found:
            self._kept.move_to_end(k)
        for k, tokens in zip(new, encode(list(new.values())) if new else (), strict=True):
            found[k] = self._keep(k, tokens)
        return [found[k] for k in keys]

    def _keep(self, k: bytes, tokens: Tensor) -> Tensor:
        if tokens.nbytes > self.most:
            return tokens
        if tokens.untyped_storage().nbytes() > tokens.nbytes:  # a part of what its neighbours lie in, too
            tokens = tokens.clone()
        self._kept[k] = tokens
        self.bytes += tokens.nbytes
        while self.bytes > self.most:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return tokens


def key(visual: Visual) -> bytes:
    """The same for the same pixels, cut in the same way."""
    digest = hashlib.sha256(repr(tuple(visual.layout)).encode())
    digest.update(visual.pixels.cpu().contiguous().numpy().data)
    return digest.digest()


def usable(model: VLM) -> bool:
    """Whether the model only answers, with weights whose changes can be seen: features are kept for nobody else."""
    if torch.is_grad_enabled() or any(module.training for part in vision(model) for module in part.modules()):
        return False
    return not any(tensor.is_inference() for tensor in tensors(model))  # those have no version


def vision(model: VLM) -> Iterator[nn.Module]:
    """Everything that pixels go through."""
    for part in (model.tower, model.projector, model.separators, model.image, model.video):
        if isinstance(part, nn.Module):
            yield part


def tensors(model: VLM) -> list[Tensor]:
    return [tensor for part in vision(model) for tensor in chain(part.parameters(), part.buffers())]


class Weights(NamedTuple):
    """Which weights a model sees with.

    model  whose they are
    held   where each lies; a weak reference keeps the place from being given to another
    told   versions, types and shapes, and steps of optimizers so far: some of them write without a new version
    some   a few numbers of each
    """

    model: ReferenceType[VLM]
    held: list[StorageWeakRef]
    told: list[Any]
    some: Tensor

    @classmethod
    def of(cls, model: VLM) -> Weights:
        found = tensors(model)
        told = [(t._version, t.dtype, t.device, t.shape) for t in found]
        some = [t.reshape(-1)[:: max(1, t.numel() // PROBED)].float() for t in found]
        return cls(ref(model), [StorageWeakRef(t.untyped_storage()) for t in found], [steps, *told], torch.cat(some))

    def same(self, other: Weights) -> bool:
        return (self.model == other.model and self.held == other.held and self.told == other.told
                and torch.equal(self.some, other.some))


steps = 0  # of any optimizer in this process


def _count(*_: Any) -> None:
    global steps
    steps += 1


register_optimizer_step_post_hook(_count)
