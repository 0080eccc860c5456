"""The `vlmkit` command: one door in, and one place that says what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vlmkit import __version__
from vlmkit.errors import PluginConflictError, VlmkitError, clean
from vlmkit.limits import set_word
from vlmkit.plugins import Broken, Manager, default

from . import console

INTERRUPTED, STORAGE, CAPACITY = 130, 4, 5


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(words: Sequence[str]) -> int:
    """Run one command line; gives its exit status."""
    try:
        make_app(default())(args=hoist(list(words)), prog_name="vlmkit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except VlmkitError as error:
        return _sorry(str(error), error.exit)
    except KeyboardInterrupt:
        return _sorry("interrupted", INTERRUPTED)
    except OSError as error:  # a folder that is not there, a full disk
        return _sorry(f"{error.filename or 'storage'}: {error.strerror or error}", STORAGE)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _sorry(f"out of memory: {error}", CAPACITY)
        raise  # not foreseen, so a fault of ours: the traceback is what we need to see
    return 0


def make_app(manager: Manager) -> typer.Typer:
    """The application: our commands, then those of plugins, through the same hook."""
    app = typer.Typer(
        help="Build, swap and study vision-language models from parts.",
        epilog="Words are names of presets, laid one over the other, then key=value.",
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    )  # fmt: skip
    app.callback()(_options)
    if not manager.has_plugin("vlmkit.cli"):
        manager.accept(sys.modules["vlmkit.cli"], "vlmkit.cli")
    names: set[str] = set()
    for hook in sorted(manager.hook.vlmkit_commands.get_hookimpls(), key=lambda h: h.plugin_name != "vlmkit.cli"):
        names |= _add(app, hook.function, hook.plugin_name, manager, names)
    return app


def hoist(words: list[str]) -> list[str]:
    """Options of every command may stand anywhere: they are moved to the front, where the application reads them."""
    end = words.index("--") if "--" in words else len(words)
    front: list[str] = []
    rest: list[str] = []
    i = 0
    while i < end:
        pair = 2 if words[i] == "--limit" else 1
        ours = words[i].partition("=")[0] in ("--limit", "--strict-plugins")
        (front if ours else rest).extend(words[i : i + pair])
        i += pair
    return [*front, *rest, *words[max(i, end) :]]


def _add(app: typer.Typer, hook: Any, plugin: str, manager: Manager, taken: set[str]) -> set[str]:
    """A plugin's commands, tried on an application of their own first: a broken one takes nothing else down."""
    trial = typer.Typer()
    trial.callback()(lambda: None)  # a group, also of one command or none
    try:
        hook(trial)
        group: Any = typer.main.get_command(trial)
        names = set(group.commands)
        if twice := taken & names:
            raise PluginConflictError(f"there is a command of that name already: {', '.join(sorted(twice))}")
    except (Exception, SystemExit) as error:
        package = manager.packages.get(plugin, "")
        manager.broken.append(Broken(plugin, package, clean(f"{type(error).__name__}: {error}")))
        console.warn(f"plugin {plugin} ({package}) is broken, its commands are left out: {manager.broken[-1].reason}")
        return set()
    manager.commands[plugin] = sorted(names)
    app.registered_commands += trial.registered_commands
    app.registered_groups += trial.registered_groups
    return names


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit()


def _options(
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Raise or lower a limit; `vlmkit limits` lists them."),
    ] = None,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="A plugin that cannot be loaded is an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    for word in limit or []:
        set_word(word)
    if strict_plugins:
        default().insist()


def _sorry(message: str, status: int) -> int:
    console.warn(f"error: {message}" if status != INTERRUPTED else message)
    return status
