"""Four parts and a preset that uses them."""
from pathlib import Path

from vlmkit import Part, hookimpl


@hookimpl
def vlmkit_parts():
    kinds = {"tower": "patches", "projector": "gated", "packer": "pooled", "decoder": "parallel"}
    return [Part(kind, name, f"{__name__}.{name}") for kind, name in kinds.items()]


@hookimpl
def vlmkit_presets():
    return [Path(__file__).parent / "presets"]
