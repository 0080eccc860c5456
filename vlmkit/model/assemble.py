"""Preset -> VLM. Every number that two parts must agree on is asked from one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .vlm import VLM, Stream

if TYPE_CHECKING:
    from ..compose.preset import Preset
    from ..compose.preset import Stream as StreamPreset
    from ..contracts import AttentionBackend, VisionTower


def assemble(preset: Preset, attention: AttentionBackend, device: Any = "meta",
             dtype: torch.dtype = torch.float32) -> VLM:
    """Build every part of a preset. On the meta device (the default) it costs no memory and no time to speak of.

    The order is the order of knowledge: the decoder knows its width, the tower its side and width, the projector
    is told both, and the separators are those the packers ask for.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return _assemble(preset, attention)
    finally:
        torch.set_default_dtype(before)


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
    tower = own or shared
    return Stream(
        packer=section.packer.build(width=tower.width, out=out),
        tiler=section.tiler.build(side=tower.side, fill=tower.mean),
        sampler=section.sampler.build() if section.sampler else None,
        tower=own,
        projector=section.projector.build(width=tower.width, out=out) if section.projector else None,
    )


def build(preset: Preset, attention: AttentionBackend, device: Any = "cpu", dtype: torch.dtype = torch.float32,
          seed: int = 0) -> VLM:
    """A model with random weights, drawn from `seed`; the caller's random state is left as it was."""
    devices = [] if torch.device(device).type == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return assemble(preset, attention, device, dtype)
