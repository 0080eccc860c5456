"""Lays a package where Python finds it, as an installer would: its folder on the path, its entry points beside it."""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit import plugins
from vlmkit.plugins import Manager

ROOT = Path(__file__).parents[2]


def lay(folder: Path, site: Path) -> None:
    """From the folder's pyproject.toml: packages, name, entry points."""
    told = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    project = told["project"]
    for package in told["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        (site / package).symlink_to((folder / package).absolute())
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in project.get("dependencies", ()))
    head = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head + needs)
    entries = configparser.ConfigParser()
    entries.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        entries.write(file)


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manager]:
    """Install folders; the manager that everything uses knows them."""

    def done(*folders: Path) -> Manager:
        for folder in folders:
            lay(folder, site)
        manager = plugins.make_manager()
        monkeypatch.setattr(plugins, "default", lambda: manager)
        return manager

    return done
