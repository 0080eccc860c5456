"""The JSON files of a strange folder: bounded, without duplicate keys, and data only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vlmkit.errors import CheckpointFormatError, CheckpointSafetyError, PresetError
from vlmkit.limits import current

JSON = dict[str, Any]
MOST = 100_000_000  # of any whole number of a configuration; each part has its own, closer ends


def read_json(file: Path, setting: str = "ckpt_max_config_bytes") -> JSON:
    """The mapping in a file; empty when there is no such file. `setting`: the limit on its size."""
    return parse(read_text(file, setting), file, "is not JSON as a configuration has it") if file.is_file() else {}


def parse(text: str | bytes, where: object, what: str) -> JSON:
    """Strict JSON: UTF-8, one object, no key twice, no NaN.   what: how the message begins"""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{what}: {error}", where=where) from None
    if not isinstance(found, dict):
        raise CheckpointFormatError(f"{what}: found {type(found).__name__}, wanted an object", where=where)
    return found


def read_text(file: Path, setting: str) -> str:
    """A file of the folder. A link may lead within the folder or to the blobs of a hub's cache, and nowhere else."""
    home, real = file.parent.resolve(), file.resolve()
    blobs = [home.parents[up] / "blobs" for up in (1, 2) if home.parent.name == "snapshots"]
    if file.is_symlink() and not any(real.is_relative_to(place) for place in (home, *blobs)):
        raise CheckpointSafetyError("is a link that leaves its folder", where=file, hint="put the file itself there")
    if (size := file.stat().st_size) > (most := getattr(current(), setting)):
        raise CheckpointFormatError("too large", where=file, limit=most, got=size, setting=setting.replace("_", ".", 1))
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointFormatError(f"cannot be read: {type(error).__name__}", where=file) from None


def _once(pairs: list[tuple[str, Any]]) -> JSON:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(literal: str) -> Any:
    raise ValueError(f"{literal} is no number")


def _finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse(literal)


def only_read(name: str) -> PresetError:
    return PresetError(f"checkpoints of format {name} are read, not written", hint="export with format llava-hf")


class Fields:
    """One mapping of a configuration; what is asked of it is checked, and an error names file and field."""

    def __init__(self, data: JSON, file: Path, at: str = "", defaults: JSON | None = None) -> None:
        self.data, self.file, self.at, self.defaults = data, file, at, defaults or {}

    @classmethod
    def of(cls, file: Path) -> Fields:
        """Of a whole file; of none, where there is no such file."""
        return cls(read_json(file), file)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def get(self, key: str, *kinds: type, default: Any = None) -> Any:
        """The field, what the layout means when it leaves the field out, or `default`; null stays null."""
        value = self.data[key] if key in self.data else self.defaults.get(key, default)
        untrue = type(value) is bool and bool not in kinds  # to Python, truth is a number
        if value is not None and kinds and (untrue or not isinstance(value, kinds)):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise self.wrong(key, f"is {value!r}, wanted {wanted}")
        return value

    def number(self, key: str, least: float = 0) -> float | None:
        value = self.get(key, int, float)
        if value is not None and not least <= value <= 1e30:
            raise self.wrong(key, f"is {value!r}, wanted a number of at least {least:g}")
        return None if value is None else float(value)

    def whole(self, key: str) -> int:
        """A number that the folder, or the layout's defaults, must give."""
        value = self.get(key, int)
        if value is None or not 1 <= value <= MOST:
            raise self.wrong(key, f"is {value!r}, wanted a number from 1 to {MOST}")
        return int(value)

    def either(self, key: str, other: str) -> int:
        """A number that may be left out or null, and means `other` then."""
        return self.whole(key if self.get(key) is not None else other)

    def inside(self, key: str, defaults: JSON | None = None) -> Fields:
        return Fields(self.get(key, dict) or {}, self.file, f"{self.at}{key}.", defaults)

    def must(self, key: str, *allowed: Any, default: Any) -> None:
        """A field that has one meaning here; null is its default."""
        value = self.get(key, default=default)
        if value is not None and value not in allowed:
            raise self.wrong(key, f"is {value!r}; vlmkit knows {' and '.join(map(repr, allowed))}")

    def wrong(self, key: str, what: str) -> CheckpointFormatError:
        return CheckpointFormatError(f"{self.at}{key} {what}", where=self.file)


def write_json(file: Path, data: JSON) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
