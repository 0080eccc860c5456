"""Preset -> VLM. Every number that two parts must agree on is asked from one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .. import registry
from ..errors import VlmkitError
from .vlm import VLM, Stream

if TYPE_CHECKING:
    from ..compose.preset import Preset
    from ..compose.preset import Stream as StreamPreset
    from ..contracts import AttentionBackend, VisionTower

HEAD = 128  # the width of a head where a decoder's section does not tell


def assemble(preset: Preset, attention: str = "auto", device: Any = "meta",
             dtype: torch.dtype = torch.float32) -> VLM:
    """Build every part of a preset. On the meta device (the default) it costs no memory and no time to speak of.

    attention  the name of a backend; it belongs to the machine, so no preset holds it

    The order is the order of knowledge: the decoder knows its width, the tower its side and width, the projector
    is told both, and the separators are those the packers ask for.
    """
    if torch.device(device).type != "meta":
        refuse(attention, preset, device, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), Undrawn():
            return _assemble(preset, backend(attention))
    finally:
        torch.set_default_dtype(before)


class Undrawn(TorchFunctionMode):
    """On the meta device random weights are not drawn: half the time of a check would go there."""

    draws = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "fill_", "zero_",
                       "erfinv_", "mul_", "add_", "clamp_"})  # the last four are how timm draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in self.draws:
            weight = args[0] if args else given.get("tensor")  # as torch.nn.init passes it
            if isinstance(weight, torch.Tensor) and weight.is_meta:
                return weight
        return func(*args, **given)


def backend(name: str) -> AttentionBackend:
    """An attention backend by name; `auto` is the one that suits the machine."""
    entry = registry.find("attention", name)
    made: AttentionBackend = entry.build(entry.config())
    return made


def refuse(attention: str, preset: Preset, device: Any, dtype: torch.dtype) -> None:
    """Raise where the backend says that it cannot serve: no such device, dtype or width of a head."""
    if why := unfit(attention, device, dtype, getattr(preset.decoder, "head", HEAD)):
        raise VlmkitError(f"{attention} {why}", where="attention", hint="auto takes the fastest that can serve")


def unfit(attention: str, device: Any, dtype: torch.dtype, head: int = HEAD) -> str | None:
    """Why a backend cannot serve there, as its own `unfit` tells, if it has one; None when it can."""
    ask = getattr(backend(attention), "unfit", None)
    return ask(torch.device(device), dtype, head) if ask else None


def _assemble(preset: Preset, attention: AttentionBackend) -> VLM:
    decoder = preset.decoder.build(attention=attention)
    tower = preset.tower.build()
    projector = preset.projector.build(width=tower.width, out=decoder.width)
    streams = {}
    for kind in ("image", "video"):
        section = getattr(preset, kind)
        streams[kind] = None if section is None else _stream(section, tower, decoder.width)
    return VLM(tower, projector, decoder, **streams)


def _stream(section: StreamPreset, shared: VisionTower, out: int) -> Stream:
    own = section.tower.build() if section.tower else None
    sampler = getattr(section, "sampler", None)  # clips have one
    tower = own or shared
    return Stream(
        packer=section.packer.build(width=tower.width, out=out),
        tiler=section.tiler.build(side=tower.side, fill=tower.mean),
        sampler=sampler.build() if sampler else None,
        tower=own,
        projector=section.projector.build(width=tower.width, out=out) if section.projector else None,
    )


def section(preset: Preset, model: VLM, name: str, device: Any) -> nn.Module:
    """One section of a preset by itself, with random weights; `model` tells what it must fit."""
    out, owner = model.decoder.width, preset
    stream, _, leaf = name.rpartition(".")
    tower = model.tower
    if stream:
        owner, tower = getattr(preset, stream), model.stream(stream).tower or model.tower
    with torch.device(device):
        if name == "separators":
            return VLM.draw_separators(sorted(model.separators), out)
        part = getattr(owner, leaf)
        given = {"tower": {}, "decoder": {"attention": backend("auto")}}.get(leaf, {"width": tower.width, "out": out})
        made: nn.Module = part.build(**given)
        return made


def build(preset: Preset, device: Any = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0,
          attention: str = "auto") -> VLM:
    """A model with random weights, drawn from `seed`; the caller's random state is left as it was."""
    devices = [] if torch.device(device).type == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return assemble(preset, attention, device, dtype)
