"""CLIP and SigLIP as transformers saves them, with their text side or without; they fill a `tower`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.contracts import PartConfig
from vlmkit.types import Described, Dressed, Rule

from . import hf_config, tables
from .files import Fields, only_read, read_json

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM

WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # with a text side -> what is inside
UNREAD = ("text_model.{p}", "text_projection.{p}", "visual_projection.{p}", "logit_scale", "logit_bias")


class Config(PartConfig):
    """No fields."""


class Clip:
    def recognise(self, folder: Path) -> bool:
        return read_json(folder / "config.json").get("model_type") in (*WHOLE, *WHOLE.values())

    def describe(self, folder: Path) -> Described:
        """Its shape. Not which layer is read, nor the depth: a preset may read less than is stored (SigLIP: 26 of 27
        blocks) and counts from the last block that it builds.
        """
        file = folder / "config.json"
        config = Fields(read_json(file), file)
        if config.get("model_type") in WHOLE:
            inner = config.inside("vision_config")
            config = Fields(inner.data | {"model_type": WHOLE[config.get("model_type")]}, file, inner.at)
        said = hf_config.tower(config, -1, False)
        del said["options"]["depth"]
        return Described("", ((file.name, {"tower": {name: said[name] for name in ("use", "model", "options")}}),))

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """Alone it is saved with `vision_model.` (until transformers 4) or without."""
        inner = any(name.startswith("vision_model.") for name in names)
        return [*tables.vit("vision_model." if inner else "", "tower.vit."), *(Rule(name, None) for name in UNREAD)]

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        raise only_read("clip")


def build(config: Config) -> Clip:
    return Clip()


EXAMPLE: dict[str, object] = {}
