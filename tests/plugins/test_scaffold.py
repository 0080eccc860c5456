"""A package that `vlmkit plugins new` makes installs and passes at once, by every way there is to check it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vlmkit
from vlmkit.compose.preset import Run
from vlmkit.errors import PluginError
from vlmkit.plugins import Manager
from vlmkit.testing import Outcome, check_part, examine_preset, parts_of
from vlmkit.testing.scaffold import KINDS, make

ROOT = Path(__file__).parents[2]
Install = Callable[..., Manager]


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_at_once(kind: str, tmp_path: Path, install: Install) -> None:
    manager = install(make(f"vlmkit-fresh-{kind}", kind, tmp_path))
    assert not manager.broken
    name = f"fresh-{kind}"
    assert {outcome.state for outcome in check_part(kind, name)} <= {"passed", "skipped"}
    found = examine_preset(name)
    assert found.state == ("skipped" if kind in ("dataset", "metric") else "passed"), found.said


def test_its_run_is_one(tmp_path: Path, install: Install) -> None:
    install(make("vlmkit-sums", "dataset", tmp_path))
    run = vlmkit.compose("tiny", "sums")
    assert isinstance(run, Run)
    assert run.data.build()[12][1]["content"] == "3"


STUDY = """extends: [tiny, runs/tiny]
video: null
vary:
  list:
    - {name: plain, image: {packer: flat}}
    - {name: queries, projector: {use: resampler, queries: 4, depth: 1, heads: 4}PACKER}
measure: [{name: shape, data: {use: scenes, split: test, count: 4}}]
"""


def test_a_study_is_checked_cell_by_cell(tmp_path: Path, install: Install) -> None:
    folder = make("vlmkit-few", "packer", tmp_path)
    presets = folder / "vlmkit_few" / "presets"
    (presets / "good.yaml").write_text(STUDY.replace("PACKER", ", image: {packer: few}"))
    (presets / "bad.yaml").write_text(STUDY.replace("PACKER", ""))  # anyres wants the rows that queries gave up
    install(folder)
    assert examine_preset("good") == Outcome("preset_fits", examine_preset("good").promise, "passed")
    found = examine_preset("bad")
    assert found.state == "failed"
    assert "image.packer" in found.said


def test_why_there_is_nothing_to_check(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_PLUGINS", "other")
    install(make("vlmkit-few", "packer", tmp_path))
    for package, said in (("vlmkit_few", "VLMKIT_PLUGINS leaves out few"), ("vlmkit-fwe", "no plugin named"),
                          ("pluggy", r"pluggy 1\S+ is installed and has no entry point in the group `vlmkit`")):
        with pytest.raises(PluginError, match=said):
            parts_of(package)


@pytest.mark.parametrize(("name", "kind", "said"), [
    ("vlmkit-x", "tover", "did you mean 'tower'"), ("vlmkit-x", "chat", "no template for 'chat'"),
    ("Vlmkit X", "tower", "is no name"), ("../x", "tower", "is no name"), ("vlmkit-mlp", "projector", "already"),
])  # fmt: skip
def test_what_is_not_made(name: str, kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=said):
        make(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    folder = make("vlmkit-x", "tower", tmp_path)
    before = (folder / "vlmkit_x" / "tower.py").read_text()
    with pytest.raises(PluginError, match="is there already"):
        make("vlmkit-x", "packer", tmp_path)
    assert (folder / "vlmkit_x" / "tower.py").read_text() == before


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "VLMKIT_PLUGINS"}
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run([sys.executable, "-m", *words], env={**env, "PYTHONPATH": path}, cwd=site, timeout=300,
                          capture_output=True, text=True, check=False)  # fmt: skip


def test_the_command_line_makes_and_checks_it(site: Path, install: Install, tmp_path: Path) -> None:
    made = run(site, "vlmkit", "plugins", "new", "vlmkit-few", "--kind", "packer", "--out", str(tmp_path))
    assert made.returncode == 0, made.stderr
    folder = Path(made.stdout.strip())
    assert "pip install -e" in made.stderr
    install(folder)
    good = run(site, "vlmkit", "plugins", "check", "vlmkit-few")
    assert good.returncode == 0, good.stderr
    assert any(line.split()[:4] == ["packer", "few", "27", "0"] for line in good.stdout.splitlines()), good.stdout
    part = folder / "vlmkit_few" / "packer.py"
    part.write_text(part.read_text().replace("dim=1)", "dim=1)[:1].expand_as(torch.cat([tokens, newline], dim=1))"))
    bad = run(site, "vlmkit", "plugins", "check", "vlmkit-few")
    assert bad.returncode == 7
    assert "packer few: reads_every_tile\n  Every tile or frame makes a difference" in bad.stderr


def test_pytest_checks_it(site: Path, install: Install, tmp_path: Path) -> None:
    install(make("vlmkit-few", "projector", tmp_path))
    flag = ("pytest", "-p", "no:cacheprovider", "--vlmkit-conformance")
    good = run(site, *flag, "vlmkit-few", "-v")
    assert good.returncode == 0, good.stdout
    assert "vlmkit-few::projector-few::batch_is_single PASSED" in good.stdout
    assert "vlmkit-few::preset-few PASSED" in good.stdout
    none = run(site, *flag, "vlmkit-fwe")
    assert none.returncode == 4
    assert "no plugin named 'vlmkit-fwe'" in none.stderr


LIGHT = """
import sys
import pytest
class Told:
    def pytest_sessionfinish(self):
        heavy = {"torch", "pydantic", "vlmkit.registry", "vlmkit.plugins"} & set(sys.modules)
        assert not heavy, heavy
sys.exit(pytest.main(["-p", "no:cacheprovider", sys.argv[1]], plugins=[Told()]))
"""


def test_without_the_flag_pytest_is_as_quick_as_ever(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "told.py").write_text(LIGHT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, str(tmp_path / "told.py"), str(tmp_path / "test_nothing.py")], env=env,
                          cwd=tmp_path, timeout=120, capture_output=True, text=True, check=False)  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 passed" in told.stdout
