"""The runner of benchmarks: rows become a page, a failing stage is named, wrong answers are not timed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import measure
import run

GOOD = """'''Two ways to sleep.

    python good.py
'''
import sys, time
sys.path.insert(0, {here!r})
from measure import Bench

bench = Bench("good", __doc__)
def gone():
    raise OSError("no compiler")
sides = {{"vlmkit": lambda: time.sleep(0.003), "slow": lambda: time.sleep(0.3), "gone": gone}}
bench.row("a | b", sides, floor=0.001)
bench.end()
"""
BAD = "'''Never ends well.'''\nraise RuntimeError('nothing here')\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two stages in the place of ours."""
    (tmp_path / "good.py").write_text(GOOD.format(here=str(run.HERE)))
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "floor.py").write_text("print('1 GFLOP/s')")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return tmp_path


def test_page(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick"])
    assert run.main() == 1
    assert "failed: bad" in capsys.readouterr().out
    page = (place / "build" / "benchmarks.md").read_text()
    assert "**Failed**: exit status 1: RuntimeError: nothing here" in page
    assert "| measured | 1 GFLOP/s |" in page
    assert "Two ways to sleep.\n\n`python good.py --quick`" in page
    cells = next(row for row in page.splitlines() if row.startswith("| a / b")).strip("| ").split(" | ")
    assert cells[3] == "OSError: no compiler"
    middle = float(cells[4].split("**")[1])
    assert middle > 1
    assert f"{middle:.2f}</text>" in (place / "build" / "images" / "benchmarks.svg").read_text()
    assert "| [good](#good) | 1 |" in page
    (place / "good.py").write_text(BAD)
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--only", "bad"])
    assert run.main() == 1
    assert "== good" not in capsys.readouterr().out
    assert "".join(cells) in (place / "build" / "benchmarks.md").read_text().replace(" | ", "")  # as it was measured
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--only", "god"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no stage is called god; there are: bad, good" in capsys.readouterr().err


def test_on_a_gpu_only_what_knows_it() -> None:
    found = [path.stem for path in run.stages(gpu=True)]
    assert {"generate", "mixed_batch", "turns"} <= set(found)
    assert not {"imports", "build", "models", "measure", "run", "floor"} & set(found)


def test_wrong_answers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--turns", "1"])
    bench, calls = measure.Bench("x", None), list[str]()

    def same(ours: Any, theirs: Any) -> None:
        assert ours == theirs

    bench.row("x", {"vlmkit": lambda: calls.append("ours"), "other": lambda: 1}, same=same)
    assert (calls, bench.rows) == (["ours"], [])
    with pytest.raises(SystemExit, match="x: not the same: x: "):
        bench.end()
    told = bench.row("y", {"vlmkit": lambda: 1, "other": lambda: 1, "third": lambda: 2}, same=same)
    assert list(told["seconds"]) == ["vlmkit", "other"]
    assert told["failed"]["third"].startswith("differs")


@pytest.mark.parametrize(("seconds", "text"), [
    (12.345, "12.3 s"), (0.5, "500 ms"), (0.00123, "1.23 ms"), (2e-6, "2.00 µs"),
])
def test_short(seconds: float, text: str) -> None:
    assert run.short(seconds) == text


@pytest.mark.parity
def test_the_pairs_that_are_timed_hold_the_same_weights() -> None:
    import models
    import prefill
    import torch

    two = models.pair("next")
    talks = [two.ask((50, 80)), two.ask()]
    assert two.answer(talks, 4) == two.their_answer(talks, 4)
    ids = torch.arange(10, 70)
    prefill.same(True, prefill.ours(two, ids), prefill.theirs(two, ids))
