"""A command is run as a user runs it, but for the process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmkit.cli.main import main


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must succeed; gives its standard output, as JSON when it was asked for."""
    def run(*words: str) -> Any:
        status = main(list(words))
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out
    return run
