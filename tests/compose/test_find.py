"""A name or a path -> a preset file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmkit import plugins
from vlmkit.compose.bind import compose
from vlmkit.compose.find import every, find, presets
from vlmkit.errors import PresetError, PresetSafetyError
from vlmkit.hookspecs import hookimpl

HERE = "extends: llava-1.5-7b\nabout: {}\n"


class Ships:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @hookimpl
    def vlmkit_presets(self) -> list[Path]:
        return [self.folder]


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two given folders, the user's own, and a plugin's."""
    for name in ("one", "two", "config/vlmkit/presets", "plugin", "plugin/runs", "plugin/whole"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("VLMKIT_PRESETS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    manager = plugins.make_manager(False, [Ships(tmp_path / "plugin")])
    monkeypatch.setattr(plugins, "default", lambda: manager)
    return tmp_path


def test_the_first_folder_wins(homes: Path) -> None:
    order = ["one", "two", "config/vlmkit/presets", "plugin"]
    for place in reversed(order):
        (homes / place / "mine.yaml").write_text(HERE.format(place))
        assert compose("mine").about == place
    assert [found.path.parent.name for found in every() if found.name == "mine"] == ["one", "two", "presets", "plugin"]
    assert presets()["mine"] == homes / "one" / "mine.yaml"
    (homes / "one" / "llava-1.5-7b.yaml").write_text(HERE.format("of the same name"))
    assert compose("llava-1.5-7b").about == "of the same name"  # extends the shipped one it shadows


def test_names_with_slashes_and_whole_folders(homes: Path) -> None:
    (homes / "plugin/runs/instruct.yaml").write_text(HERE.format("a run"))
    (homes / "plugin/whole/preset.yaml").write_text(HERE.format("whole") + "weights: [{from: ., format: native}]")
    (homes / "plugin/whole/recipe.yaml").write_text("steps: 1")
    assert compose("runs/instruct").about == "a run"
    assert compose("whole").name == "whole"
    assert compose("whole").weights[0].from_ == str(homes / "plugin/whole")
    assert {"runs/instruct", "whole"} <= set(presets())
    assert not {"whole/recipe", "whole/preset"} & set(presets())


def test_paths(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (homes / "deep.yaml").write_text(HERE.format("a file"))
    (homes / "ckpt").mkdir()
    (homes / "ckpt/preset.yaml").write_text(HERE.format("a folder"))
    monkeypatch.chdir(homes)
    for name, about in (("deep.yaml", "a file"), ("./deep.yaml", "a file"), (str(homes / "deep.yaml"), "a file"),
                        ("ckpt", "a folder"), ("./ckpt", "a folder"), ("ckpt/preset.yaml", "a folder")):  # fmt: skip
        assert compose(name).about == about
    assert (compose("deep.yaml").name, compose("./ckpt").name) == ("deep", "ckpt")
    with pytest.raises(PresetError, match="no such preset file"):
        find("./nothing.yaml")


def test_paths_beside_the_preset_stay_beside_it(homes: Path) -> None:
    (homes / "one/a.yaml").write_text(HERE.format("x") + "weights: [{from: ./../two, format: native}]")
    with pytest.raises(PresetError, match=r"a.yaml:3: .*leads out"):
        compose("a")


def test_a_template_lies_beside_the_preset(homes: Path) -> None:
    (homes / "secret").write_text("x")
    (homes / "one/link.jinja").symlink_to(homes / "secret")
    (homes / "one/chat.jinja").write_text("{{ messages }}")
    for file in ("chat.jinja", "./chat.jinja"):
        (homes / "one/a.yaml").write_text(HERE.format("x") + f"chat: {{use: template, file: {file}}}")
        chat: Any = compose("a").chat
        assert chat.file == str(homes / "one/chat.jinja")
    for file in (str(homes / "secret"), "../secret", "link.jinja"):
        (homes / "one/a.yaml").write_text(HERE.format("x") + f"chat: {{use: template, file: {file}}}")
        with pytest.raises(PresetSafetyError, match=r"a.yaml:3: .*leads out"):
            compose("a")


@pytest.mark.parametrize("name", ["llava-1.5-7", "../llava-1.5-7b", "a//b", "", "x" * 5000, "a\nb"])
def test_no_such_name(name: str) -> None:
    with pytest.raises(PresetError):
        find(name)


def test_the_nearest_names_are_offered() -> None:
    with pytest.raises(PresetError, match=r"did you mean llava-1.5-7b"):
        find("lava-1.5-7b")


def test_nobody_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder, as in many containers, and a `~` that means nobody."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", _nobody)
    assert "tiny" in presets()
    for name in ("~/mine.yaml", "~nobody-at-all/mine.yaml", "~"):
        with pytest.raises(PresetError, match="no such preset file"):
            find(name)


def _nobody(_: int) -> None:
    raise KeyError("no such user")
