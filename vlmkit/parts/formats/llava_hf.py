"""Folders that transformers writes and reads: llava, vipllava, llava_next(_video), llava_onevision, video_llava."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.contracts import PartConfig
from vlmkit.errors import CheckpointFormatError
from vlmkit.types import Described, Dressed, Rule

from . import tables
from .files import Fields, read_json
from .hf_folder import describe
from .hf_write import dress

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM

TYPES = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "video_llava")


class Config(PartConfig):
    """No fields."""


class LlavaHF:
    def recognise(self, folder: Path) -> bool:
        config = read_json(folder / "config.json")
        return config.get("model_type") in TYPES and "text_config" in config

    def describe(self, folder: Path) -> Described:
        config = Fields(read_json(folder / "config.json"), folder / "config.json")
        if not self.recognise(folder):
            raise CheckpointFormatError(f"model_type is {config.data.get('model_type')!r}, wanted one of "
                                        f"{', '.join(TYPES)} with a text_config", where=config.file)
        return describe(folder, config)

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """For any of the key layouts: on disk, in memory, with and without `vision_model.`"""
        inner = any(name.startswith("model.language_model.") for name in names)
        rest = "model." if inner else ""
        body, head = ("model.language_model.", "") if inner else ("language_model.model.", "language_model.")
        own = bool(preset.video and preset.video.tower)  # Video-LLaVA
        seen = ("image_tower", "video_tower") if own else ("vision_tower",)
        rules: list[Rule] = []
        for tower, ours in zip(seen, ("tower.vit.", "video.tower.vit."), strict=False):
            before = f"{rest}{tower}."
            whole = not names or any(name.startswith(f"{before}vision_model.") for name in names)
            rules += tables.vit(f"{before}vision_model." if whole else before, ours)
        tied = not hasattr(preset.decoder, "tied") or preset.decoder.tied
        return [
            *rules,
            *tables.projector(f"{rest}multi_modal_projector.", ("linear_1", "linear_2", "projector_layernorm")),
            Rule(f"{rest}image_newline", "separators.newline"),
            Rule("model.vision_resampler.pool.{p}", "video.packer.conv.{p}"),
            Rule("vision_resampler.pool.{p}", "video.packer.conv.{p}"),
            *tables.decoder(body, head, tied, names),
        ]

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        return dress(folder, preset, model)


def build(config: Config) -> LlavaHF:
    return LlavaHF()


EXAMPLE: dict[str, object] = {}
