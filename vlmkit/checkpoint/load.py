"""A name, a folder, a hub id or a preset -> a model and its processor; compared on paper before memory is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compose.preset import Preset
from ..errors import CheckpointMismatchError, WeightsError
from ..model.assemble import assemble, refuse, section
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from . import native
from .keys import Piece, join
from .paper import Origin, Paper, home, paper
from .quantize import packed, quantized
from .quantize import quantize as shrink
from .tensors import read

if TYPE_CHECKING:
    from ..model.vlm import VLM

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(source: str | Path | Preset, *overrides: str, device: Any = "cpu", dtype: torch.dtype | None = None,
         attention: str = "auto", quantize: str | None = None, verify: bool = True,
         seed: int = 0) -> tuple[VLM, Processor]:
    """A model with its weights, and the processor that feeds it.

    source   a preset's name, a checkpoint folder in any known layout, a hub id `org/name[@revision]`, or a preset
    dtype    None: what the checkpoint stores
    quantize keep the matrices of the decoder's blocks in few bits: int8 or nf4. Each is packed as it is read
    verify   compare each file of a folder that vlmkit wrote with the SHA-256 of its lock file first
    seed     draws the sections that no checkpoint fills, where the preset's `weights` say `into`
    """
    plan = paper(source, *overrides, verify=verify)
    if plan.preset.tokenizer is None:
        raise WeightsError("the preset names no tokenizer", where=f"preset {plan.preset.name}", hint="add `tokenizer`")
    words = Tokenizer.from_file(home(plan.preset.tokenizer.from_) / native.TOKENIZER)
    processor = Processor(plan.preset, plan.skeleton, words)
    number = dtype or stored_dtype(plan)
    refuse(attention, plan.preset, device, number)
    model = assemble(plan.preset, attention)
    for how in (quantized(plan.skeleton), quantize):
        if how:
            shrink(model, how)
    fill(model, plan, device, number, seed)
    return model.eval(), processor


def fill(model: VLM, plan: Paper, device: Any, dtype: torch.dtype, seed: int) -> None:
    """Put tensors in the place of a meta model's, file by file; afterwards nothing is on meta."""
    for name in plan.random:
        _draw(model, plan.preset, name, device, dtype, seed)
    for origin in plan.origins:
        for name, tensor in _joined(origin, plan.skeleton):
            whole = tensor.to(device, dtype if tensor.is_floating_point() else None)
            for kept, bits in packed(model, name, whole).items():
                put(model, kept, bits)
    for part in model.modules():
        compute = getattr(part, "materialize", None)
        if callable(compute):  # what no checkpoint holds, such as rotary tables
            compute()
    stray = [name for name, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if stray:
        raise WeightsError(f"{len(stray)} tensors got no values: {', '.join(stray[:10])}")


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set one parameter or buffer by name."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter):
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        owner.register_buffer(leaf, tensor)


def stored_dtype(plan: Paper) -> torch.dtype:
    """What most stored numbers are."""
    sizes: dict[str, int] = {}
    for origin in plan.origins:
        for stored in origin.taken.values():
            if stored.dtype in DTYPES:
                sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.numbers
    return DTYPES[max(sizes, key=sizes.__getitem__)] if sizes else torch.float32


def _joined(origin: Origin, model: VLM) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, each as soon as all it is made of has been read."""
    homes: dict[str, tuple[str, Piece]] = {
        theirs: (ours, piece) for ours, piece in origin.plan.pieces.items() for theirs in piece.names}
    waiting: dict[str, dict[str, Tensor]] = {}
    for theirs, tensor in read(origin.taken):
        ours, piece = homes[theirs]
        parts = waiting.setdefault(ours, {})
        parts[theirs] = tensor
        if len(parts) == len(piece.names):
            del waiting[ours]
            if piece.how == "twice" and not all(torch.equal(tensor, part) for part in parts.values()):
                raise CheckpointMismatchError(f"{' and '.join(piece.names)} differ, and are said to be one",
                                              where=origin.folder, hint="decoder.tied=false keeps both")
            shape = _at(model, ours).shape
            yield ours, join([parts[name] for name in piece.names], piece.how, tuple(shape))


def _at(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), leaf)
    return found


def _draw(model: VLM, preset: Preset, name: str, device: Any, dtype: torch.dtype, seed: int) -> None:
    """Random weights for a section, as `build` draws them."""
    devices = [] if torch.device(device).type == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for inner, tensor in section(preset, model, name, device).state_dict().items():
            whole = tensor.to(dtype) if tensor.is_floating_point() else tensor
            for kept, bits in packed(model, f"{name}.{inner}", whole).items():
                put(model, kept, bits)


