"""A folder of transformers that holds a bare vision model or language model, for this package's tower and decoder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.contracts import PartConfig
from vlmkit.errors import PresetError
from vlmkit.parts.formats.files import read_json
from vlmkit.types import Described, Dressed, Rule

from .configs import Architecture, config_of

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM


class Config(PartConfig):
    """No fields."""


class Bare:
    def recognise(self, folder: Path) -> bool:
        return isinstance(read_json(folder / "config.json").get("model_type"), str)

    def describe(self, folder: Path) -> Described:
        """The sections it can fill; a config of several models can fill two."""
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        from .tower import colours

        file = folder / "config.json"
        told = {"decoder": config_of(file, "text_config"), "tower": config_of(file, "vision_config")}
        speaks = CONFIG_MAPPING[told["decoder"]["model_type"]] in MODEL_FOR_CAUSAL_LM_MAPPING
        if not speaks or told["tower"] == told["decoder"]:
            del told["tower" if speaks else "decoder"]
        found: dict[str, Any] = {place: {"use": "transformers", "config": config} for place, config in told.items()}
        if "tower" in found:
            found["tower"] |= colours(folder)
        return Described("", ((file.name, found),))

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """Their names on disk, behind whatever stands before them here; what is behind the last block is not kept."""
        import torch

        rules: list[Rule] = []
        rest: list[Rule] = []
        parts = {"tower": preset.tower, "decoder": preset.decoder, "image.tower": preset.image and preset.image.tower,
                 "video.tower": preset.video and preset.video.tower}  # fmt: skip
        for place, part in parts.items():
            if not isinstance(part, Architecture):
                continue
            with torch.device("meta"):
                made = part.build(**({"attention": None} if place == "decoder" else {}))
            known = _stored(made.model)
            before = _before(names, known)
            if before is not None:
                heads = [name for name in made.state_dict() if name.startswith("head.")]
                rules += [Rule(name.removeprefix("head."), f"{place}.{name}") for name in heads]
                rules += [Rule(before + theirs, f"{place}.model.{ours}") for theirs, ours in _short(known).items()]
                rest.append(Rule(before + "{p}", None))
        return rules + rest

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        raise PresetError("a folder of one bare model has no place for a projector", where="format transformers",
                          hint="vlmkit_transformers.wrap(model, processor) gives what save_pretrained writes whole")


def _stored(model: Any) -> dict[str, str]:
    """Name on disk -> name in memory, of the weights that are the same in both."""
    from transformers.core_model_loading import revert_weight_conversion

    ours = model.state_dict()
    known = {id(tensor): name for name, tensor in ours.items()}
    return {name: known[id(t)] for name, t in revert_weight_conversion(model, ours.copy()).items() if id(t) in known}


def _short(known: Mapping[str, str]) -> dict[str, str]:
    """One rule for all blocks: the first number of both names becomes {i}."""
    number = re.compile(r"(?<=\.)\d+(?=\.)")
    short = {}
    for theirs, ours in known.items():
        same = number.findall(theirs)[:1] == number.findall(ours)[:1]
        short[number.sub("{i}", theirs, 1) if same else theirs] = number.sub("{i}", ours, 1) if same else ours
    return short


def _before(names: Iterable[str], wanted: Collection[str]) -> str | None:
    """What stands before most of the wanted names; None when less than half of them are there."""
    found = Counter[str]()
    for name in names:
        at = 0
        while at >= 0 and name[at:] not in wanted:
            at = name.find(".", at) + 1 or -1
        if at >= 0:
            found[name[:at]] += 1
    before, count = max(found.items(), key=lambda pair: pair[1], default=("", 0))
    return before if 2 * count > len(wanted) else None


def build(config: Config) -> Bare:
    return Bare()


EXAMPLE: dict[str, object] = {}
