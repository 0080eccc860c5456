"""Language models by themselves, as transformers saves them: Llama, Mistral, Qwen2 and Qwen3; they fill `decoder`."""

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


class Config(PartConfig):
    """No fields."""


class Language:
    def recognise(self, folder: Path) -> bool:
        config = read_json(folder / "config.json")
        return config.get("model_type") in [*hf_config.TEXT] and not any(key.startswith("mm_") for key in config)

    def describe(self, folder: Path) -> Described:
        file = folder / "config.json"
        return Described("", ((file.name, {"decoder": hf_config.decoder(Fields(read_json(file), file))}),))

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """With its head, or the body alone, whose names begin one step further in."""
        body = "" if "embed_tokens.weight" in names else "model."
        return tables.decoder(body, "", not hasattr(preset.decoder, "tied") or preset.decoder.tied, names)

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        raise only_read("language")


def build(config: Config) -> Language:
    return Language()


EXAMPLE: dict[str, object] = {}
