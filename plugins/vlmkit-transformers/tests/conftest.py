"""Lets vlmkit find this package, and no other plugin, as an installer would leave it: by its entry point."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ["VLMKIT_PLUGINS"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("VLMKIT_PRESETS", None)
if importlib.util.find_spec("vlmkit_transformers") is None:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer writes beside a package; empty when one did."""
    site = tmp_path_factory.mktemp("site")
    if any(found.name == "vlmkit-transformers" for found in importlib.metadata.distributions()):
        return site
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    info = site / f"vlmkit_transformers-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = configparser.ConfigParser()
    entries.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        entries.write(file)
    return site


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    from vlmkit import plugins

    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("VLMKIT_PLUGINS", "transformers")
    manager = plugins.make_manager()
    assert not manager.broken
    monkeypatch.setattr(plugins, "default", lambda: manager)
