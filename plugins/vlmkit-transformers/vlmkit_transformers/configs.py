"""What transformers knows a model by: its config.json, or the same as a mapping, read as data. Nobody's code runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from vlmkit.contracts import PartConfig
from vlmkit.errors import PresetError
from vlmkit.limits import current
from vlmkit.parts.formats.files import read_json

MOST = 10_000_000  # of any number, such as rows of an embedding
REPEATED = 1024  # of one that says how often something is built: a preset must not build without end
_REPEATS = re.compile(r"(layers?|blocks?|depths?|stages|experts|repeats|labels)$")
# where code or weights come from, and what belongs to the machine: never a file's to say
_NOT_OURS = re.compile(r"_.*|auto_map|custom_.*|.*_implementation|architectures|(torch_)?dtype|transformers_version"
                       r"|quantization_config|name_or_path|use_cache|return_dict|output_.*")  # fmt: skip


class Architecture(PartConfig):
    """A model of transformers. What the file says becomes part of the preset, which then needs the file no more."""

    place: ClassVar[str]  # where it stands in a preset
    section: ClassVar[str]  # in a config that describes more than one model

    file: str | None = Field(None, description="config.json, or the folder that holds it; beside the preset")
    config: dict[str, Any] = Field({}, description="as in config.json, over what the file says; needs a `model_type`")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        over = given.get("config", {}) if isinstance(given, Mapping) else None
        if not isinstance(over, Mapping):
            return given
        config = (config_of(given["file"], cls.section) if given.get("file") else {}) | clean(over, cls.section)
        _bound(config, "config", 0)
        if not isinstance(config.get("model_type"), str):
            raise ValueError("give `file`, or `config` with the model_type of an architecture")
        return {**given, "file": None, "config": config}

    def make(self, auto: str, **more: Any) -> Any:
        """The model, its weights drawn; `auto` is the name of a class, such as AutoModel."""
        import torch
        import transformers

        kind, known = str(self.config["model_type"]), transformers.CONFIG_MAPPING
        if kind not in known or kind.startswith("timm"):
            near = get_close_matches(kind, known.keys(), 3)
            raise PresetError(f"transformers {transformers.__version__} makes no {kind!r} of a config",
                              where=f"{self.place}.config.model_type",
                              hint=f"did you mean {' or '.join(near)}?" if near else "")
        try:
            config = known[kind](**copy.deepcopy(self.config))
            return getattr(transformers, auto).from_config(config, dtype=torch.get_default_dtype(), **more)
        except Exception as error:  # whatever a constructor thinks of its arguments
            raise PresetError(f"transformers cannot make {kind}: {error}", where=f"{self.place}.config") from error


def config_of(place: str | Path, section: str) -> dict[str, Any]:
    """What a config.json, or the one in a folder, says of one section."""
    path = Path(place) / "config.json" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise ValueError(f"{path} is no file; a name on the hub is not looked up here")
    return clean(read_json(path), section)


def clean(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The tower's or the decoder's part of a config, without what a file may not say."""
    inner = config.get(section)
    said: dict[str, Any] = _clean(inner if isinstance(inner, Mapping) else config)
    return said


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items() if not _NOT_OURS.fullmatch(str(key))}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value


def _bound(value: Any, path: str, depth: int) -> None:
    """Refuse what would build without end, or fetch weights behind our back."""
    name = path.rpartition(".")[2]
    if depth > current().json_max_depth:
        raise ValueError(f"{path[:80]} is nested too deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _bound(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _bound(inner, path, depth + 1)
    elif "pretrained" in name and value:
        raise ValueError(f"{path} asks for weights; they come from the preset's `weights`")
    elif isinstance(value, int | float) and abs(value) > (most := REPEATED if _REPEATS.search(name) else MOST):
        raise ValueError(f"{path} is {value}; at most {most}")
