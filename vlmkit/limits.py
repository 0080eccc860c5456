"""How much a stranger's file may cost. Defaults, and the four ways an operator changes them.

Order: ``with Limits(...):`` in Python, ``--limit image.max_pixels=1e8`` on the command line,
``VLMKIT_LIMIT_IMAGE__MAX_PIXELS`` in the environment, the default. A preset or a request never raises one.

A ``with`` holds in its own thread, and in the asyncio tasks and forked processes that begin inside it. Another thread
begins with the environment's limits; to hand it these, start it in ``contextvars.copy_context()``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from .errors import OverrideError

MiB = 1 << 20
MOST = {"video_max_sampled_frames": 512}  # what nobody may go beyond: these frames are in memory together


@dataclass(frozen=True)
class Limits:
    """Bytes, pixels, seconds and counts; a field ``image_max_pixels`` is the setting ``image.max_pixels``."""

    image_max_bytes: int = 32 * MiB
    image_max_pixels: int = 64_000_000
    image_max_aspect: int = 200
    image_decode_seconds: float = 10
    media_max_images: int = 16
    media_max_total_pixels: int = 128_000_000
    video_max_bytes: int = 256 * MiB
    video_max_duration_s: float = 3600
    video_max_frame_pixels: int = 34_000_000
    video_max_streams: int = 32
    video_max_sampled_frames: int = 64
    video_max_decoded_frames: int = 20_000
    video_open_seconds: float = 10
    video_decode_seconds: float = 60
    text_max_chars: int = 1_000_000
    text_max_messages: int = 1024
    tokenizer_max_bytes: int = 64 * MiB
    template_max_bytes: int = 256 << 10
    template_render_seconds: float = 2
    template_max_output: int = 4 * MiB
    template_max_memory: int = 128 * MiB
    preset_max_bytes: int = MiB
    preset_max_depth: int = 32
    preset_max_nodes: int = 20_000
    preset_max_scalar: int = 64 << 10
    preset_max_extends: int = 8
    preset_max_files: int = 16
    ckpt_max_header_bytes: int = 16 * MiB
    ckpt_max_tensors: int = 200_000
    ckpt_max_index_bytes: int = 64 * MiB
    ckpt_max_shards: int = 1024
    ckpt_max_config_bytes: int = MiB
    json_max_depth: int = 64
    plugin_warn_s: float = 2
    plugin_name_s: float = 10
    _said = frozenset[str]()  # the fields that were given; the others stay as they are outside

    def __new__(cls, **given: float) -> Limits:
        self = super().__new__(cls)
        object.__setattr__(self, "_said", frozenset(given))
        return self

    def __post_init__(self) -> None:
        for name in self._said:
            _check(name, getattr(self, name), f"Limits({name}=...)")

    def __enter__(self) -> Limits:
        inside = replace(current(), **{name: getattr(self, name) for name in self._said})
        _inside.set((*_inside.get(), inside))
        return inside

    def __exit__(self, *_: object) -> None:
        _inside.set(_inside.get()[:-1])


_inside: ContextVar[tuple[Limits, ...]] = ContextVar("limits", default=())  # of the blocks around here; the last holds
_words: dict[str, float] = {}  # from --limit
_last: tuple[dict[Any, Any], dict[str, float], Limits] | None = None  # environment, words, and what follows from them


def settings() -> dict[str, str]:
    """Setting -> field: ``image.max_pixels`` -> ``image_max_pixels``."""
    return {f.name.replace("_", ".", 1): f.name for f in fields(Limits)}


def current() -> Limits:
    """The limits in force here."""
    global _last
    if inside := _inside.get():
        return inside[-1]
    environ = os.environ._data  # type: ignore[attr-defined]  # to ask it for each name takes fifty times as long
    if _last is None or _last[:2] != (environ, _words):
        given = {name: value for name, (value, _) in resolve(os.environ).items()}
        _last = dict(environ), dict(_words), Limits(**given)
    return _last[2]


def resolve(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Field -> (value, where it comes from)."""
    found: dict[str, tuple[Any, str]] = {}
    for setting, name in settings().items():
        variable = "VLMKIT_LIMIT_" + setting.replace(".", "__").upper()
        if name in _words:
            found[name] = (_words[name], "command line")
        elif variable in environ:
            found[name] = (_number(name, environ[variable], variable), variable)
        else:
            found[name] = (getattr(Limits, name), "default")
    return found


def set_word(word: str) -> None:
    """Take one ``--limit image.max_pixels=100e6``."""
    setting, _, value = word.partition("=")
    name = settings().get(setting)
    if name is None:
        raise OverrideError(f"no limit named {setting!r}", where="--limit", hint="`vlmkit limits` lists them")
    _words[name] = _number(name, value, f"--limit {setting}")


def _number(name: str, text: str, where: str) -> float:
    value: Any = text
    with suppress(ValueError):  # what is no number is refused below
        value = float(text)
        value = int(value) if value.is_integer() else value
    _check(name, value, where)
    number: float = value
    return number


def _check(name: str, value: Any, where: str) -> None:
    if not isinstance(value, Real) or not 0 <= float(value) < 1e18 or float(value) > MOST.get(name, 1e18):
        wanted = f"from 0 to {MOST[name]}" if name in MOST else "of at least 0"
        raise OverrideError(f"expected a number {wanted}, got {str(value)[:80]!r}", where=where)
