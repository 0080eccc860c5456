"""The door: statuses, messages, limits, and commands that plugins bring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from vlmkit import limits
from vlmkit.cli.main import hoist, main, make_app
from vlmkit.hookspecs import hookimpl
from vlmkit.plugins import Broken, make_manager

BROKEN = "projector: {use: mlp, depth: two}\nextends: tiny\n"


@pytest.fixture(autouse=True)
def _no_words() -> Any:
    yield
    limits._words.clear()


def test_a_fault_of_the_user_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text(BROKEN)
    assert main(["show", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "projector.depth" in said.err
    assert "deep.yaml:1" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("words", [
    ["show", "no-such-preset"],
    ["show", "tiny", "projector=nonsense"],
    ["show", "tiny", "projector.depht=2"],
    ["show", "tiny", "projector.depth=two"],
    ["parts", "no-such-kind"],
    ["no-such-command"],
    ["show"],
    ["check"],
    ["tokens", "tiny"],
    ["tokens", "tiny", "no-such-file.png"],
    ["explain", "tiny", "no-such-file.png"],
    ["generate", "tiny"],
    ["generate", "no-such-preset", "what?"],
    ["generate", "tiny", "what?", "--stream", "--json"],
    ["generate", "tiny", "what?", "--top-p", "2"],
    ["generate", "tiny", "what?", "--dtype", "int8"],
    ["generate", "tiny", "what?", "--device", "gpu"],
    ["generate", "tiny", "what?", "--device", "cuda:99"],
    ["generate", "tiny", "what?", "--attention", "flash-attn-9"],
    ["limits", "--limit", "no.such=3"],
    ["limits", "--limit", "image.max_pixels=many"],
])  # fmt: skip
def test_mistakes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip()
    assert "Traceback" not in said.err


def test_limits_say_where_they_come_from(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_LIMIT_VIDEO__MAX_STREAMS", "4")
    assert main(["limits", "--json", "--limit", "image.max_pixels=1e8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image.max_pixels"] == {"value": 100_000_000, "from": "command line"}
    assert found["video.max_streams"] == {"value": 4, "from": "VLMKIT_LIMIT_VIDEO__MAX_STREAMS"}
    assert found["media.max_images"] == {"value": 16, "from": "default"}


def test_limit_may_stand_anywhere() -> None:
    assert hoist(["check", "tiny", "--limit", "a.b=1"]) == ["--limit", "a.b=1", "check", "tiny"]
    assert hoist(["check", "--limit=a.b=1", "tiny"]) == ["--limit=a.b=1", "check", "tiny"]
    assert hoist(["generate", "tiny", "--", "--limit"]) == ["generate", "tiny", "--", "--limit"]
    assert hoist(["check", "--limit"]) == ["--limit", "check"]


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "vlmkit", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    import vlmkit

    assert done.stdout.strip() == vlmkit.__version__


class Greeting:
    @hookimpl
    def vlmkit_commands(self, commands: Any) -> None:
        @commands.command()
        def greet(name: str) -> None:
            """Say hello."""
            print(f"hello {name}")


class Leaving:
    @hookimpl
    def vlmkit_commands(self, commands: Any) -> None:
        sys.exit(0)


class Grouped:
    @hookimpl
    def vlmkit_commands(self, commands: Any) -> None:
        commands.add_typer(show := typer.Typer(), name="show")
        show.command("half")(lambda: None)


class Faulty:
    @hookimpl
    def vlmkit_commands(self, commands: Any) -> None:
        @commands.command()
        def half() -> None: ...

        raise RuntimeError("no more")


class Thief:
    @hookimpl
    def vlmkit_commands(self, commands: Any) -> None:
        @commands.command()
        def show() -> None: ...


def test_a_plugin_brings_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app(make_manager(entry_points=False, plugins=[Greeting()]))
    with pytest.raises(SystemExit) as end:
        app(args=["greet", "ada"])
    assert end.value.code == 0
    assert capsys.readouterr().out == "hello ada\n"


def test_strict_plugins_end_any_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make_manager(entry_points=False, plugins=[object()])
    broken.broken.append(Broken("half", "half 1.0", "no such device"))
    monkeypatch.setattr("vlmkit.cli.main.default", lambda: broken)
    assert main(["limits"]) == 0
    assert main(["limits", "--strict-plugins"]) == 7
    assert "plugin half (half 1.0) cannot be loaded: no such device" in capsys.readouterr().err


@pytest.mark.parametrize(("plugin", "why"), [
    (Faulty(), "RuntimeError: no more"),
    (Thief(), "a command of that name already: show"),
    (Grouped(), "a command of that name already: show"),
    (Leaving(), "SystemExit: 0"),
])  # fmt: skip
def test_a_broken_plugin_takes_nothing_down(plugin: Any, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    manager = make_manager(entry_points=False, plugins=[plugin, Greeting()])
    app = make_app(manager)
    assert [b.reason for b in manager.broken if why in b.reason]
    assert why in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        app(args=["greet", "ada"])
    assert end.value.code == 0
    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert "half" not in names
    assert len([c for c in app.registered_commands if c.callback and c.callback.__name__ == "show"]) == 1
    assert [group.name for group in app.registered_groups] == ["plugins"]


def test_other_failures_have_their_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                              tmp_path: Path) -> None:
    from vlmkit.cli import main as door

    def raising(error: BaseException) -> Any:
        def app(**_: Any) -> None:
            raise error
        return lambda manager: app

    for error, status in ((KeyboardInterrupt(), 130), (MemoryError(), 5), (OSError(28, "No space left on device"), 4)):
        monkeypatch.setattr(door, "make_app", raising(error))
        assert main([]) == status
        assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(door, "make_app", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main([])


def test_the_list_of_commands_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app(make_manager(entry_points=False))
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        assert isinstance(sys.modules[callback.__module__], ModuleType)
        assert main([command.name or callback.__name__, "--help"]) == 0
        assert (callback.__doc__ or "").splitlines()[0] in " ".join(capsys.readouterr().out.split())
