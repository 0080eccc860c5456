"""A plugin in `plugins/` is found once it is installed: laid out as its wheel would be, seen by a fresh process."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "plugins" / "vlmkit-qformer"
PRESET = "llava-1.5-7b-qformer"

Run = Callable[..., subprocess.CompletedProcess[str]]


def install(folder: Path, site: Path) -> None:
    """What an installer leaves behind, from the folder's pyproject.toml: packages, name, entry points."""
    told = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project = told["project"]
    for package in told["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(folder / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = configparser.ConfigParser()
    entries.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        entries.write(file)


@pytest.fixture(scope="module")
def vlmkit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the command line with the plugin installed; `allowed` is VLMKIT_PLUGINS."""
    site, home = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("home")
    install(PLUGIN, site)
    clean = {name: value for name, value in os.environ.items() if name not in ("VLMKIT_PLUGINS", "XDG_CONFIG_HOME")}
    path = os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: str, allowed: str | None = None) -> subprocess.CompletedProcess[str]:
        env = clean | {"PYTHONPATH": path, "HOME": str(home)} | ({} if allowed is None else {"VLMKIT_PLUGINS": allowed})
        return subprocess.run([sys.executable, "-m", "vlmkit", *words], cwd=home, env=env, capture_output=True,
                              text=True, check=False, timeout=600)  # fmt: skip

    return run


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def projectors(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    return {part["name"]: (part["plugin"], part["module"]) for part in document(done)}


def test_the_command_line_knows_it(vlmkit: Run) -> None:
    assert projectors(vlmkit("parts", "projector", "--json"))["qformer"] == ("qformer", "vlmkit_qformer.qformer")
    lines = vlmkit("parts", "projector").stdout.splitlines()
    assert any(line.split()[:3] == ["projector", "qformer", "qformer"] and "BLIP-2" in line for line in lines)
    found = document(vlmkit("plugins", "--json"))
    assert found["broken"] == []
    assert {"plugin": "qformer", "package": "vlmkit-qformer 0.1.0", "parts": 2, "presets": 3, "commands": [],
            "problems": []} in found["plugins"]  # fmt: skip


def test_its_preset_is_found_and_fits_together(vlmkit: Run) -> None:
    done = vlmkit("check", PRESET)
    assert done.returncode == 0, done.stderr
    assert f"{PRESET} fits together" in done.stdout
    assert ["picture", "336", "x", "336", "32"] in [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("allowed", ["qformer", "vlmkit-qformer, vlmkit-other"])
def test_it_can_be_let_in_by_name(vlmkit: Run, allowed: str) -> None:
    assert "qformer" in projectors(vlmkit("parts", "projector", "--json", allowed=allowed))


@pytest.mark.parametrize("allowed", ["", "other"])
def test_it_can_be_left_out(vlmkit: Run, allowed: str) -> None:
    names = projectors(vlmkit("parts", "projector", "--json", allowed=allowed))
    assert "mlp" in names
    assert "qformer" not in names


def test_without_it_a_preset_says_what_is_missing(vlmkit: Run) -> None:
    unknown = vlmkit("check", PRESET, allowed="")
    assert unknown.returncode == 2
    assert f"no preset named '{PRESET}'" in unknown.stderr
    needy = vlmkit("check", str(PLUGIN / "vlmkit_qformer" / "presets" / f"{PRESET}.yaml"), allowed="")
    assert needy.returncode == 2
    lines = [" ".join(line.split()) for line in needy.stderr.splitlines()]
    assert f"needs[0] {PRESET}.yaml:3 plugin vlmkit-qformer is not installed" in lines
    assert any(line.startswith("projector.use") and "no projector named 'qformer'" in line for line in lines)
