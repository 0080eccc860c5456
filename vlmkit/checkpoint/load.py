"""A name, a folder, a hub id or a preset -> a model and its processor; compared on paper before memory is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..compose.preset import Preset
from ..errors import CheckpointMismatchError, WeightsError
from ..model.assemble import refuse, section
from ..parts.decoders.layers import twin
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from . import native
from .keys import Piece, join
from .paper import Origin, Paper, home, paper
from .quantize import Quantized
from .quantize import quantize as shrink
from .tensors import finite, mapped, read

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
    plan = paper(source, *overrides, verify=verify, attention=attention)
    if plan.preset.tokenizer is None:
        raise WeightsError("the preset names no tokenizer", where=f"preset {plan.preset.name}", hint="add `tokenizer`")
    words = Tokenizer.from_file(home(plan.preset.tokenizer.from_, weights=False) / native.TOKENIZER)
    model, number = plan.skeleton, dtype or stored_dtype(plan)
    refuse(attention, plan.preset, device, number)
    processor = Processor(plan.preset, _counter(model), words)
    fill(model, plan, device, number, seed, quantize)
    return model.eval(), processor


class Unseen:
    """Looks at weights that still lie in mapped files, once, when they are first needed and come from disk anyway.

    Raises CheckpointCorruptError where one is NaN or infinite. A hook before the decoder: all that answers or learns
    passes there.
    """

    def __init__(self, tensors: list[tuple[str, Tensor, Path]]) -> None:
        self.tensors = tensors  # name, [any], its file

    def __call__(self, decoder: nn.Module, given: Any) -> None:
        for name, tensor, file in self.tensors:
            finite(name, tensor.detach(), file)
        self.tensors = []
        hooks = decoder._forward_pre_hooks
        for at in [at for at, hook in hooks.items() if hook is self]:
            del hooks[at]


def fill(model: VLM, plan: Paper, device: Any, dtype: torch.dtype, seed: int, quantize: str | None = None) -> None:
    """Put tensors in the place of a meta model's, file by file; afterwards nothing is on meta."""
    if quantize:
        shrink(model, quantize)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in plan.random:
        _draw(model, modules, plan.preset, name, device, dtype, seed)
    unseen: list[tuple[str, Tensor, Path]] = []
    for origin in plan.origins:
        files = mapped({stored.file for stored in origin.taken.values()})
        for name, tensor in _joined(origin, plan.wanted):
            whole = tensor.to(device, dtype if tensor.is_floating_point() else None)
            file = origin.stored[origin.plan.pieces[name].names[0]].file
            if file in files and whole is not tensor:
                finite(name, whole, file)
            if (kept := put(modules, name, whole)) is not None and file in files and whole is tensor:
                unseen.append((name, kept, file))
    decoder: Any = model.decoder
    if unseen:
        decoder.register_forward_pre_hook(Unseen(unseen))
    for part in dict.fromkeys(modules.values()):
        if callable(compute := getattr(part, "materialize", None)):  # what no checkpoint holds, as rotary tables
            compute()
    stray = [f"{path}.{leaf}" for path, part in modules.items()
             for leaf, t in (*part._parameters.items(), *part._buffers.items()) if t is not None and t.is_meta]
    if stray:
        raise WeightsError(f"{len(stray)} tensors got no values: {', '.join(stray[:10])}")


def _counter(model: VLM) -> VLM:
    """A second meta model without a decoder's blocks, which counting tokens does not run."""
    decoder: Any = model.decoder
    counter: Any = twin(model, but=decoder)
    del counter.decoder
    counter.decoder = SimpleNamespace(width=decoder.width, vocab=decoder.vocab, context=decoder.context)
    return cast("VLM", counter)


def put(modules: dict[str, nn.Module], name: str, tensor: Tensor) -> Tensor | None:
    """Set one parameter or buffer by name, and give it; None where a quantized layer packed its matrix."""
    path, _, leaf = name.rpartition(".")
    owner: Any = modules[path]
    few = isinstance(owner, Quantized) and leaf == "weight" and tensor.is_floating_point()
    kept = owner.pack(tensor) if few else {leaf: tensor}
    for own, bits in kept.items():
        if (old := owner._parameters.get(own)) is None:
            owner._buffers[own] = bits
        else:
            owner._parameters[own] = nn.Parameter(bits, requires_grad=old.requires_grad)
    return None if few else owner._parameters.get(leaf, owner._buffers.get(leaf))


def stored_dtype(plan: Paper) -> torch.dtype:
    """What most stored numbers are."""
    sizes: dict[str, int] = {}
    for origin in plan.origins:
        for stored in origin.taken.values():
            if stored.dtype in DTYPES:
                sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.numbers
    return DTYPES[max(sizes, key=sizes.__getitem__)] if sizes else torch.float32


def _joined(origin: Origin, wanted: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
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
            yield ours, join([parts[name] for name in piece.names], piece.how, wanted[ours].shape)


def _draw(model: VLM, modules: dict[str, nn.Module], preset: Preset, name: str, device: Any, dtype: torch.dtype,
          seed: int) -> None:
    """Random weights for a section, as `build` draws them."""
    devices = [] if torch.device(device).type == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for inner, tensor in section(preset, model, name, device).state_dict().items():
            whole = tensor.to(dtype) if tensor.is_floating_point() else tensor
            put(modules, f"{name}.{inner}", whole)


