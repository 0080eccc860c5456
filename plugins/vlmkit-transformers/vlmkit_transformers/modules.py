"""What is asked of the modules of any transformers model: what repeats, how large it is, what no checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlmkit.errors import ShapeError


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """What repeats: the largest list of modules, and its name."""
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    if not lists:
        raise ShapeError(f"{type(model).__name__} has no list of blocks")
    name = max(lists, key=lambda name: weigh(lists[name]))  # of equals the outer one, which comes first
    return name, lists[name]


def weigh(module: nn.Module) -> int:
    """How many parameters, each tied one once."""
    return sum(weight.numel() for weight in module.parameters())


def materialize(model: Any) -> None:
    """Compute the buffers no checkpoint holds, such as rotary tables, where they are still on the meta device."""
    device = next(model.parameters()).device
    lost = [part for part in model.modules() if any(b.is_meta for b in part.buffers(recurse=False))]
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor._is_hf_initialized = True  # so that `_init_weights` leaves it alone
    for part in lost:
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                part._buffers[name] = torch.empty_like(buffer, device=device)
        with torch.no_grad():
            model._init_weights(part)
