"""vlmkit eval: questions of a dataset, answers, scores, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmkit.cli.main import main

ASK = ("eval", "tiny", "--data", "scenes", "data.split=test", "data.count=6", "data.skills=[shape, small_text]")


def test_scores_and_files(tmp_path: Path, said: Any) -> None:
    told = said(*ASK, "--metric", "exact", "--metric", "choice", "metrics[1].choices=[circle,square,triangle]",
                "--batch", "4", "--out", str(tmp_path / "new"), "--json")  # fmt: skip
    assert told == json.loads((tmp_path / "new" / "results.json").read_text("utf-8"))
    assert told["n-samples"] == {"scenes": {"original": 6, "effective": 6}}
    assert told["configs"]["scenes"]["data"]["skills"] == ["shape", "small_text"]
    rows = [json.loads(line) for line in (tmp_path / "new" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [row["sample"] for row in rows] == list(range(6))
    for name in ("exact", "choice"):
        assert told["results"]["scenes"][f"{name},none"] == sum(row["scores"][name] for row in rows) / 6
        assert all(row["scores"][name] == (row["answers"][name] in row["references"]) for row in rows)
    assert {row["answers"]["choice"] for row in rows} <= {"circle", "square", "triangle"}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["results.json", "samples.jsonl"]


def test_for_people(said: Any) -> None:
    lines = said(*ASK[:4], "data.split=test", "data.count=2", "data.skills=[shape]").splitlines()
    assert lines[0].split() == ["exact", "100.0", "%"]
    assert lines[-1] == "2 of 2 questions were asked"


@pytest.mark.parametrize(("words", "status", "wanted"), [
    (["--data", "scene"], 2, "did you mean 'scenes'?"), (["--data", "scenes", "--metric", "exakt"], 2, "'exact'?"),
    (["--data", "scenes", "data.splt=test"], 2, "did you mean 'split'?"),
    (["--data", "scenes", "data.skills=[]"], 3, "skill"),
    (["--data", "scenes", "data.count=2", "--metric", "choice"], 3, "brings no `choices`"), ([], 2, "--data"),
])  # fmt: skip
def test_mistakes(words: list[str], status: int, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", *words]) == status
    captured = capsys.readouterr()
    assert wanted in captured.err
    assert "Traceback" not in captured.err
