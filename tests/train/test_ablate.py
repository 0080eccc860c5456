"""Studies: cells are rehearsed together, trained in processes of their own, resumed, and laid side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vlmkit
from vlmkit.cli.main import main
from vlmkit.compose.cells import cells, run_of
from vlmkit.compose.study import Study
from vlmkit.errors import ConfigDriftError, PresetError, ResumeError
from vlmkit.train import report
from vlmkit.train.ablate import ablate, rehearsed
from vlmkit.train.begin import begin

ROOT = Path(__file__).parents[2]
SMALL = {
    "extends": ["tiny", "runs/tiny"], "steps": 3, "batch": 2, "save_every": 10, "workers": 0, "video": None,
    "decoder": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn": 48},
    "tower": {"options": {"channels": [8, 8, 16, 8]}}, "data": {"turns": 1, "skills": ["shape", "word"]},
    "seeds": [0, 1], "vary": {"grid": {"projector": ["mlp", "linear"]}},
    "measure": [{"name": "shape", "data": {"use": "scenes", "split": "test", "skills": ["shape"], "count": 4}},
                {"name": "word", "data": {"use": "scenes", "split": "test", "skills": ["word"], "count": 3},
                 "metrics": ["exact"], "max_new_tokens": 2}],
}  # fmt: skip


def study(folder: Path, **changes: Any) -> Study:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False), "utf-8")
    made = vlmkit.compose(file)
    assert isinstance(made, Study)
    return made


@pytest.mark.parametrize(("vary", "names"), [
    ({"grid": {"projector": ["mlp", {"use": "mlp", "depth": 3}], "steps": [1, 2]}},
     ["projector=mlp, steps=1", "projector=mlp, steps=2", "projector=mlp depth=3, steps=1",
      "projector=mlp depth=3, steps=2"]),
    ({"paired": {"decoder.layers": [1, 2], "train.decoder": [1e-3, 5e-4]}},
     ["layers=1 decoder=0.001", "layers=2 decoder=0.0005"]),
    ({"list": [{"name": "as it is"}, {"name": "flat", "image": {"packer": "flat"}, "train": {"separators": None}}]},
     ["as it is", "flat"]),
    ({"list": [{"name": "a"}, {"name": "b", "steps": 9}], "grid": {"batch": [1, 2]}},
     ["batch=1, a", "batch=1, b", "batch=2, a", "batch=2, b"]),
])  # fmt: skip
def test_what_varies(vary: Any, names: list[str], tmp_path: Path) -> None:
    made = study(tmp_path, vary=vary)
    assert [cell.name for cell in cells(made)] == names
    runs = [run_of(made, cell, 7) for cell in cells(made)]
    assert {run.seed for run in runs} == {7}
    assert len({json.dumps(run.dump() | {"name": ""}) for run in runs}) == len(runs)
    if "paired" in vary:
        assert [(run.decoder.layers, run.train["decoder"].rate) for run in runs] == [(1, 1e-3), (2, 5e-4)]
    if names[-1] == "flat":
        assert [run.image.packer.use for run in runs if run.image] == ["anyres", "flat"]
        assert [set(run.train) - {"tower", "projector", "decoder"} for run in runs] == [{"separators"}, set()]


@pytest.mark.parametrize(("vary", "said"), [
    ({}, "nothing varies"), ({"paired": {"steps": [1], "batch": [1, 2]}}, "one length"),
    ({"grid": {"steps": []}}, "no values"),
    ({"list": [{"steps": 1}]}, "has a name"), ({"grid": {"steps": [1, 1]}}, "two cells are named 'steps=1'"),
])  # fmt: skip
def test_what_cannot_vary(vary: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=said):
        cells(study(tmp_path, vary=vary))


def test_all_problems_are_told_before_anything_starts(tmp_path: Path) -> None:
    made = study(tmp_path, vary={"list": [
        {"name": "good"}, {"name": "typo", "projector": {"use": "mlp", "dept": 3}},
        {"name": "misfit", "projector": {"use": "resampler", "queries": 4, "heads": 2}},
        {"name": "no such section", "train": {"glasses": 1e-3}}, {"name": "short", "decoder": {"context": 20}}]})
    with pytest.raises(PresetError) as caught:
        ablate(made, tmp_path / "out")
    said = str(caught.value)
    assert "4 of 5 cells do not fit; nothing was started" in said
    for words in ("cell typo: ", "dept", "cell misfit: ", "rows and columns", "cell no such section: ", "'glasses'",
                  "cell short: ", "the model reads 20"):
        assert words in said
    assert "good" not in said
    assert not (tmp_path / "out").exists()


def test_what_cells_have_in_common_starts_alike(tmp_path: Path) -> None:
    made = study(tmp_path, vary={"grid": {"projector": ["linear", {"use": "mlp", "depth": 3}]}})
    one, two = (begin(run_of(made, cell, 0))[0].state_dict() for cell in cells(made))
    other = begin(run_of(made, cells(made)[0], 1))[0].state_dict()
    for name in one.keys() & two.keys():
        assert torch.equal(one[name], two[name])
    assert not torch.equal(one["decoder.embed.weight"], other["decoder.embed.weight"])
    assert not torch.equal(one["projector.linear.weight"], other["projector.linear.weight"])


def test_a_study_from_its_file_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path)
    out = tmp_path / "out"
    assert main(["ablate", str(tmp_path / "small.yaml"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    rows = [json.loads(text) for text in (out / "results.jsonl").read_text("utf-8").splitlines()]
    assert [(row["cell"], row["seed"]) for row in rows] == [
        ("projector=mlp", 0), ("projector=mlp", 1), ("projector=linear", 0), ("projector=linear", 1)]  # fmt: skip
    for row in rows:
        assert set(row["scores"]) == {"shape", "word"}
        assert row["steps"] == 3
        assert row["memory"] > 50e6
        assert (out / row["folder"] / "model" / "lock.json").is_file()
        samples = (out / row["folder"] / "word.jsonl").read_text("utf-8").splitlines()
        assert [set(json.loads(line)) for line in samples] == [
            {"sample", "question", "references", "answers", "scores"}] * 3
    assert rows[0]["parameters"] > rows[2]["parameters"]
    assert rows[0]["visual"] == rows[2]["visual"]
    assert rows[0]["flops"] > rows[2]["flops"]
    assert said.out == (out / "table.md").read_text("utf-8") + "\n"
    page = (out / "report.html").read_text("utf-8")
    assert "projector.use" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert (out / "plot.svg").read_text("utf-8").startswith("<?xml")

    # a row is rebuilt from its own file
    folder = out / rows[3]["folder"]
    assert main(["train", str(folder / "run.yaml"), "--out", str(tmp_path / "again")]) == 0
    one, two = (vlmkit.load(f / "model")[0].state_dict() for f in (folder, tmp_path / "again"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())

    # what is finished is kept; what is new is added; what is another study is refused
    before = (folder / "result.json").stat().st_mtime_ns
    made = study(tmp_path, seeds=[1], vary={"grid": {"projector": ["linear", "mlp"], "train.tower": [1e9]}})
    with pytest.raises(ResumeError, match="--resume"):
        ablate(made, out)
    with pytest.raises(ConfigDriftError, match=r"steps: 3, now 4"):
        ablate(study(tmp_path, steps=4), out, resume=True)
    told: list[str] = []
    rows = ablate(study(tmp_path), out, resume=True, told=told.append)
    assert told == ["4 of 4 runs are finished already"]
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_cell_that_breaks_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """One learns so fast that its loss is no number any more; two run side by side."""
    made = study(tmp_path, seeds=[0], jobs=2, vary={"list": [
        {"name": "wild", "train": {"decoder": 1e30}},
        {"name": "tame", "projector": {"use": "resampler", "queries": 4, "heads": 2}, "image": {"packer": "flat"},
         "train": {"separators": None}}]})
    rows = ablate(made, tmp_path / "out")
    assert "not finite" in rows[0]["error"] or "blind guesses" in rows[0]["error"]
    assert "scores" in rows[1]
    text = report.table(made, rows)
    assert "| wild | broke |" in text
    assert "Broke: wild, seed 0: " in text


def test_killed_and_resumed_it_ends_as_if_unbroken(tmp_path: Path) -> None:
    """The study is killed, so its cell stops by itself; the rest is done later, to the bit."""
    changes: Any = {"seeds": [0], "steps": 30, "save_every": 2, "vary": {"list": [{"name": "one"}]}}
    made, out = study(tmp_path, **changes), tmp_path / "out"
    words = [sys.executable, "-m", "vlmkit", "ablate", str(tmp_path / "small.yaml"), "--out", str(out)]
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "one" / "seed-0" / "log.jsonl"
    until(lambda: log.is_file() and len(log.read_bytes().splitlines()) > 4)
    running.kill()
    running.wait(60)
    until(lambda: "the study was stopped" in (out / "one" / "seed-0" / "output.txt").read_text("utf-8"))
    assert len(log.read_bytes().splitlines()) < 30
    (row,) = ablate(made, out, resume=True)
    assert "scores" in row
    ablate(made, tmp_path / "unbroken")
    one, two = (vlmkit.load(f / "one" / "seed-0" / "model")[0].state_dict() for f in (out, tmp_path / "unbroken"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def until(come: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_spread_and_pairs() -> None:
    """Student's t for three values is 4.303: 1, 2, 3 have the mean 2 ± 4.303 / sqrt(3)."""
    assert report.spread([1, 2, 3]) == (2, 1, pytest.approx(4.303 / 3**0.5))
    assert report.spread([5]) == (5, None, None)
    assert report.paired({0: 1, 1: 2, 2: 3}, {0: 2, 1: 2, 3: 9}) == (0.5, pytest.approx(0.5**0.5), pytest.approx(6.353))
    assert report.paired({0: 1.0}, {1: 1.0}) is None


def test_the_table_in_full() -> None:
    rows = [{"cell": cell, "seed": seed, "scores": {"a": a, "b": b}}
            for cell, marks in {"one": [(0.5, 0.2), (0.6, 0.2)], "two": [(0.7, 0.1), (0.8, 0.3)]}.items()
            for seed, (a, b) in enumerate(marks)]  # fmt: skip
    assert report.grid(rows) == [["cell", "a", "b", "all"], ["one", "55.0 ± 7.1", "20.0 ± 0.0", "37.5 ± 3.5"],
                                 ["two", "75.0 ± 7.1", "20.0 ± 14.1", "47.5 ± 10.6"]]  # fmt: skip
    assert report.differences(rows) == [
        ["minus one", "a", "b", "all"],
        ["two", "+20.0 [+20.0, +20.0]*", "+0.0 [-127.1, +127.1]", "+10.0 [-53.5, +73.5]"]]


def test_shipped_studies_fit(tmp_path: Path) -> None:
    for name in ("projector", "packer", "clip-pooling"):
        made = vlmkit.compose(f"studies/{name}")
        assert isinstance(made, Study)
        assert len(made.seeds) >= 3
        assert len(rehearsed(made)) >= 4
