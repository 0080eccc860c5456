"""TextVQA for vlmkit: its questions, its accuracy, and a command that scores answers made elsewhere."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmkit.hookspecs import Part, hookimpl

vlmkit_api = 1


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    return [Part("dataset", "textvqa", f"{__name__}.questions"), Part("metric", "textvqa", f"{__name__}.accuracy")]


@hookimpl
def vlmkit_presets() -> Iterable[Path]:
    return [Path(__file__).parent / "presets"]


@hookimpl
def vlmkit_commands(commands: Any) -> None:
    from .command import textvqa

    commands.command("textvqa")(textvqa)
