"""Any model that timm saved for the hub (`timm.models.save_for_hf`, safetensors); it fills a `tower`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.contracts import PartConfig
from vlmkit.types import Described, Dressed, Rule

from .files import JSON, Fields, only_read, read_json

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM

HEADS = ("head", "head.fc", "fc", "classifier", "last_linear")  # what names classes; no tower has it
USUAL = ("num_classes", "in_chans", "global_pool", "depth")  # arguments that are not the shape of a tower


class Config(PartConfig):
    """No fields."""


class Timm:
    def recognise(self, folder: Path) -> bool:
        return {"architecture", "pretrained_cfg"} <= read_json(folder / "config.json").keys()

    def describe(self, folder: Path) -> Described:
        """Its shape and statistics; as with CLIP, neither the depth nor the layer that is read."""
        file = folder / "config.json"
        config = Fields(read_json(file), file)
        given, trained = config.inside("model_args"), config.inside("pretrained_cfg")
        given.must("in_chans", 3, default=3)
        options = {name: value for name, value in given.data.items() if name not in USUAL}
        said: JSON = {"use": "timm", "model": _model(config, trained), "options": options}
        said |= {name: trained.get(name, list) for name in ("mean", "std") if trained.get(name, list)}
        if size := trained.get("input_size", list):
            if trained.get("fixed_input_size", bool):
                options.setdefault("img_size", size[-1])
            else:
                said["side"] = size[-1]
        return Described("", ((file.name, {"tower": said}),))

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        heads = [f"{head}.{leaf}" for head in HEADS for leaf in ("weight", "bias")]
        return [*(Rule(name, None) for name in heads), Rule("{p}", "tower.vit.{p}")]

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        raise only_read("timm")


def _model(config: Fields, trained: Fields) -> str:
    """timm's name. CLIPs trained with quick_gelu are stored under the name with gelu; timm only says so in a note."""
    import timm  # slow, and wanted for such folders only

    name, tag = config.get("architecture", str) or "", trained.get("tag", str) or ""
    quick = f"{name.replace('_clip_', '_clip_quickgelu_')}.{tag}"
    found = "_clip_" in name and "quickgelu" not in name and quick in timm.list_pretrained(filter="*_clip_quickgelu_*")
    return quick if found else name


def build(config: Config) -> Timm:
    return Timm()


EXAMPLE: dict[str, object] = {}
