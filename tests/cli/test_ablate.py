"""vlmkit ablate: what it refuses. What it does is tests/train/test_ablate.py's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmkit.cli.main import main


@pytest.mark.parametrize(("words", "wanted"), [
    (["tiny"], "says nothing about what varies"), (["studies/none"], "no preset named"),
    (["studies/packer", "vary.grid={steps: [1, 0]}"], "at least 1, got 0"),
    (["studies/packer", "measure=[]"], "measure"), (["studies/packer", "seeds=[x]"], "seeds"),
])  # fmt: skip
def test_mistakes(words: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *words, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert wanted in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
