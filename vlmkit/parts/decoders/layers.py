"""The layers of a decoder's block, quick on a CPU, too."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache as remember
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = {torch.float32: (8, 2**20), torch.bfloat16: (2, 2**17)}  # tokens, at weights of so many elements or more,
MOST = 32  # and up to these, that a CPU multiplies the other way round
ROOM = 2**18  # elements that a CPU normalises at once, if not in float32
PIECE = 2**24  # bytes in an MLP's middle that a CPU holds at once, or up to twice as many: glibc gives larger ones up

COPIED = (dict, OrderedDict, set)  # what a module keeps its hooks and names in
M = TypeVar("M", bound=nn.Module)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[tokens, ins] -> [tokens, outs]

    On a CPU a few tokens go the other way round: libraries block by rows of the left matrix, and few is badly blocked.
    """
    few, large = FEW.get(x.dtype, (MOST + 1, 0))
    if not (few <= len(x) <= MOST and x.is_cpu and weight.numel() >= large):
        return F.linear(x, weight, bias)
    y = torch.mm(weight, x.t()).t()
    return (y if bias is None else y + bias.to(y.dtype)).contiguous()


class Linear(nn.Linear):
    """A linear layer that starts from a normal distribution."""

    def __init__(self, ins: int, outs: int, *, std: float, bias: bool = False) -> None:
        self.std = std
        super().__init__(ins, outs, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, ins] -> [tokens, outs]"""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table of tokens that starts from a normal distribution."""

    def __init__(self, vocab: int, width: int, *, std: float) -> None:
        self.std = std
        super().__init__(vocab, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


def twin(module: M, but: nn.Module | None = None) -> M:
    """A module of the same shapes on the meta device, in a fifth of the time of building one.   but: not copied"""
    made = module.__new__(type(module))
    own = {name: value.copy() if type(value) in COPIED else value for name, value in vars(module).items()}
    own["_parameters"] = {name: p if p is None else nn.Parameter(p) for name, p in module._parameters.items()}
    own["_modules"] = {name: inner if inner in (None, but) else twin(inner, but)
                       for name, inner in module._modules.items()}
    vars(made).update(own)
    return made


@remember
def roomy() -> None:
    """Free a large block, unused: glibc then keeps as much of what is freed, and layers reuse each other's pages."""
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


@remember
def constant(value: float) -> Tensor:
    """[], on the host"""
    with torch.inference_mode(False):  # kept, so it must also serve a call that learns
        return torch.tensor(value, device="cpu")


class RMSNorm(nn.Module):
    """Divides by the root mean square in float32; the weight multiplies after the cast back."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.shape, self.eps = (width,), eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same"""
        usual = torch.is_grad_enabled() or not x.is_cpu or torch.compiler.is_compiling()
        if usual or (x.dtype != torch.float32 and x.numel() <= ROOM):
            return F.rms_norm(x, self.shape, None, self.eps) * self.weight
        if x.dtype != torch.float32:  # what lies between its kernels is float32, and stays in caches
            out, rows = torch.empty_like(x), max(1, ROOM * len(x) // x.numel())
            for some, made in zip(x.split(rows), out.split(rows), strict=True):
                torch.mul(F.rms_norm(some, self.shape, None, self.eps), self.weight, out=made)
            return out
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # a CPU's rms_norm is seven kernels, this reads once
        squared = torch.addcmul(constant(self.eps), length, length, value=1 / self.shape[0])
        return (x * squared.rsqrt_()).mul_(self.weight)
