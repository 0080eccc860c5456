"""Finds the package beside these tests when it is not installed, and lets vlmkit know it and no other plugin."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

os.environ["VLMKIT_PLUGINS"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("VLMKIT_PRESETS", None)
if importlib.util.find_spec("vlmkit_textvqa") is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installation would: the name of the entry point, and the package it comes from."""
    import vlmkit_textvqa

    from vlmkit import plugins

    manager = plugins.make_manager(entry_points=False)
    manager.accept(vlmkit_textvqa, "textvqa", "vlmkit-textvqa 0.1.0")
    monkeypatch.setattr(plugins, "default", lambda: manager)
