"""The command line. Each command is a file of this folder, added through the hook that any plugin has."""

from __future__ import annotations

from typing import Any

from vlmkit.hookspecs import hookimpl


@hookimpl
def vlmkit_commands(commands: Any) -> None:
    """In the order of a first visit: look around, look at one, use it."""
    from .ablate import ablate
    from .bench import bench
    from .chat import chat
    from .check import check
    from .diff import diff
    from .doctor import doctor
    from .eval import eval_
    from .explain import explain
    from .export import export
    from .generate import generate
    from .import_ import import_
    from .limits import limits
    from .parts import parts
    from .plugins import app as plugins
    from .presets import presets
    from .quality import quality
    from .show import show
    from .tokens import tokens
    from .train import train

    for command in (presets, parts, show, diff, check, tokens, explain, generate, chat, bench, quality,
                    import_, export, train, ablate, eval_, doctor, limits):  # fmt: skip
        commands.command(command.__name__.rstrip("_"))(command)
    commands.add_typer(plugins, name="plugins")
