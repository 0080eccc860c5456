"""Eight or four bits for the matrices inside the decoder's blocks; all else stays in the dtype it was loaded in."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PresetError, WeightsError
from ..registry import nearest

if TYPE_CHECKING:
    from ..model.vlm import VLM

SLICE = 1 << 20  # weights made whole at a time on a CPU, where they stay in its cache
FEW = 8  # tokens up to which torch's kernel for bfloat16 on a CPU is the faster way


class Quantized(nn.Module, ABC):
    """A linear layer that keeps its matrix in few bits: buffers `weight` and `scale`, as `pack` makes them.

    Both are plain tensors, so a state dict goes through safetensors as it is. The scale has the dtype of the model.
    """

    block = 1  # the length of a row is a multiple of it
    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.ins, self.outs, self.bias = layer.in_features, layer.out_features, layer.bias
        for name, tensor in self.pack(layer.weight.detach()).items():
            self.register_buffer(name, tensor)

    @classmethod
    @abstractmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """[outs, ins] -> `weight` and `scale`, on the same device"""

    def extra_repr(self) -> str:
        return f"{self.ins}, {self.outs}, bias={self.bias is not None}"


class Int8(Quantized):
    """weight int8 [outs, ins], scale [outs, 1]: the largest of a row is 127 steps."""

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """[outs, ins] -> [outs, ins] and [outs, 1]"""
        scale = (weight.abs().amax(1, keepdim=True).float() / 127).to(weight.dtype)  # rounded before it divides
        steps = weight.float().div(scale.float()).round_().clamp_(-127, 127).nan_to_num_()  # 0 / 0 in a row of zeros
        return {"weight": steps.to(torch.int8), "scale": scale}

    def forward(self, x: Tensor) -> Tensor:
        """[..., ins] -> [..., outs]"""
        if x.is_cpu and x.dtype == torch.bfloat16 and x.numel() <= FEW * self.ins and not x.requires_grad:
            few = torch._weight_int8pack_mm(x.reshape(-1, self.ins), self.weight, self.scale.flatten())
            y = few.view(*x.shape[:-1], self.outs)
        else:
            rows = max(1, SLICE // self.ins) if x.is_cpu else self.outs
            slices = zip(self.weight.split(rows), self.scale.split(rows), strict=True)
            y = torch.cat([F.linear(x, weight * scale) for weight, scale in slices], -1)
        return y if self.bias is None else y + self.bias


class NF4(Quantized):
    """QLoRA's NormalFloat, by bitsandbytes: weight uint8 [outs, ins / 2], scale [outs, ins / 64]."""

    block = 64  # weights that share a scale; where a row ends within one, bitsandbytes 0.50 errs on a CPU

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """[outs, ins] -> [outs, ins / 2] and [outs, ins / 64]"""
        packed, state = _bitsandbytes().functional.quantize_4bit(weight, blocksize=cls.block, quant_type="nf4")
        return {"weight": packed.view(len(weight), -1), "scale": state.absmax.view(len(weight), -1).to(weight.dtype)}

    def forward(self, x: Tensor) -> Tensor:
        """[..., ins] -> [..., outs]"""
        library = _bitsandbytes()
        state = library.functional.QuantState(self.scale.float().flatten(), (self.outs, self.ins), quant_type="nf4",
                                              blocksize=self.block, dtype=x.dtype)  # fmt: skip
        y: Tensor = library.matmul_4bit(x, self.weight, state, bias=self.bias)
        return y


WAYS: dict[str, type[Quantized]] = {"int8": Int8, "nf4": NF4}


def quantize(model: VLM, how: str) -> VLM:
    """Keep the matrices of the decoder's blocks in few bits, one after the other, in place.

    Everything outside the blocks stays as it is: towers, projectors, separators, embedding, head. Inside them so do
    norms, biases, and the layers that the decoder names in `unquantized`, such as a router. On a meta model only
    shapes change; `load.put` gives them values.
    """
    if how not in WAYS:
        raise PresetError(f"no way to quantize is named {how!r}; there are: {', '.join(WAYS)}{nearest(how, WAYS)}",
                          where="quantize")  # fmt: skip
    if already := quantized(model):
        if already == how:
            return model
        raise WeightsError(f"the weights are quantized already, as {already}, and cannot become {how}",
                           where="quantize", hint="start from whole weights: both roundings would add up")  # fmt: skip
    kind, layers = WAYS[how], list(_matrices(model))
    if not layers:
        raise WeightsError("the blocks of this decoder hold no nn.Linear", where="quantize",
                           hint="load it whole, in bfloat16 where float32 is too much")  # fmt: skip
    for name, _, _, layer in layers:
        if layer.in_features % kind.block:
            raise WeightsError(f"rows of {layer.in_features} weights; {how} needs a multiple of {kind.block}",
                               where=name, hint="int8 takes any width")  # fmt: skip
    for _, parent, child, layer in layers:
        setattr(parent, child, kind(layer))
    stacked = {f"{at}.{name}": tensor.numel() for at, block in enumerate(model.decoder.blocks)
               for name, tensor in block.named_parameters() if tensor.ndim > 2}
    if stacked:
        warnings.warn(f"{sum(stacked.values()):,} numbers of the decoder's blocks stay whole: {len(stacked)} stacks of "
                      f"matrices, such as {next(iter(stacked))}, which are no nn.Linear", stacklevel=2)
    return model


def quantized(model: VLM) -> str | None:
    """How a model is quantized; None when it is not."""
    kinds = {type(part) for part in model.modules()}
    return next((how for how, kind in WAYS.items() if kind in kinds), None)


def _matrices(model: VLM) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Name, parent, name in the parent, layer."""
    names = {part: name for name, part in model.named_modules()}
    whole = tuple(f".{name}" for name in getattr(model.decoder, "unquantized", ()))
    for parent in (part for block in model.decoder.blocks for part in block.modules()):
        for child, layer in parent.named_children():
            name = f"{names[parent]}.{child}"
            if isinstance(layer, nn.Linear) and not name.endswith(whole):
                yield name, parent, child, layer


def _bitsandbytes() -> Any:
    """The library. Its import would fetch native code from a hub where `kernels` is installed: that one is hidden."""
    if found := sys.modules.get("bitsandbytes"):
        return found
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it would ask for `kernels`
    modules: dict[str, Any] = sys.modules
    kernels = modules.pop("kernels", None)
    modules["kernels"] = None
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise WeightsError(f"nf4 needs bitsandbytes, which cannot be imported: {error}", where="quantize",
                           hint="pip install 'vlmkit[quantize]'") from None  # fmt: skip
    finally:
        del modules["kernels"]
        if kernels is not None:
            modules["kernels"] = kernels
