"""vlmkit train: from nothing to a folder that answers, and on again after a stop."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmkit
from vlmkit.cli import console
from vlmkit.cli.main import main
from vlmkit.cli.train import Pace
from vlmkit.train.log import Done

WORDS = ("train", "tiny", "runs/tiny", "decoder.layers=1", "decoder.width=32", "decoder.heads=2", "decoder.ffn=48",
         "tower.options.channels=[8,8,16,8]", "steps=3", "batch=2", "save_every=2", "workers=0",
         "data.turns=1")  # fmt: skip


def run(out: Path, *more: str) -> int:
    taken = {word.partition("=")[0] for word in more}
    return main([*(w for w in WORDS if w.partition("=")[0] not in taken), *more, "--out", str(out)])


def test_a_model_is_trained_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new" / "run") == 0
    out = tmp_path / "new" / "run"
    said = capsys.readouterr()
    assert said.out == f"{out / 'model'}\n"
    assert re.search(r"^step 3 of 3  loss \d+\.\d{3}  [\d,]+ tokens/s  \d+% visual  0:00:00 left$", said.err, re.M)
    assert sorted(p.name for p in out.iterdir()) == [
        "audit.txt", "log.jsonl", "model", "run.yaml", "state", "tensorboard"]
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [0, 1, 2]
    model, processor = vlmkit.load(out / "model")
    assert isinstance(vlmkit.generate(model, processor, "hello", max_new_tokens=3), str)
    fresh = vlmkit.build(processor.preset)
    assert not torch.equal(model.decoder.norm.weight, fresh.decoder.norm.weight)


def test_its_record_trains_the_same_model(tmp_path: Path) -> None:
    assert run(tmp_path / "one") == 0
    assert main(["train", str(tmp_path / "one" / "run.yaml"), "--out", str(tmp_path / "two")]) == 0
    one, two = (vlmkit.load(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(pace: Pace, done: Done) -> str:
        if done.step == 2:
            raise KeyboardInterrupt
        return tell(pace, done)

    tell = Pace.tell
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "tell", interrupt)
        assert run(tmp_path / "a", "steps=4") == 130
    assert "--resume" in capsys.readouterr().err
    assert run(tmp_path / "a", "steps=4") == 4
    assert "--resume" in capsys.readouterr().err
    assert run(tmp_path / "a", "steps=5", "--resume") == 4
    assert "steps: 4, now 5" in capsys.readouterr().err
    assert run(tmp_path / "a", "steps=4", "save_every=3", "--resume") == 0
    assert run(tmp_path / "b", "steps=4") == 0
    one, two = (vlmkit.load(tmp_path / name / "model")[0].state_dict() for name in "ab")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("words", "status", "said"), [
    (["tiny"], 2, "runs/tiny"),
    (["runs/tiny"], 2, "put a preset before it"),
    (["tiny", "runs/tiny", "tokenizer=null"], 2, "tokenizer"),
    (["tiny", "runs/tiny", "train.decodre=1e-3"], 2, "decodre"),
    (["tiny", "runs/tiny", "--resume"], 4, "nothing to resume"),
])  # fmt: skip
def test_mistakes(words: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words, "--out", str(tmp_path / "out")]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out" / "model").exists()


def test_a_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(console, "lively", lambda stream: True)
    assert run(tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "3/3" in said
    assert "tokens/s" in said


def test_two_processes(tmp_path: Path) -> None:
    """The command starts them itself; one saves, one speaks."""
    words = [sys.executable, "-m", "vlmkit", *WORDS, "machine.shard=fsdp", "log=none", "train.tower=null"]
    done = subprocess.run([*words, "--processes", "2", "--out", str(tmp_path / "two")], capture_output=True, text=True,
                          timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'model'}\n"
    assert done.stderr.count("step 3 of 3") == 1
    assert main([*WORDS, "log=none", "train.tower=null", "--out", str(tmp_path / "one")]) == 0
    one, two = (vlmkit.load(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-3, rtol=0)


def test_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "runs/tiny", "data.turns=1", "--labels", "1"]) == 0
    assert re.search(r"visual tokens\]\n.*\n<\|im_start\|>assistant\n\[\[.*<\|im_end\|>\]\]", capsys.readouterr().out)
    assert main(["train", "tiny", "runs/tiny"]) == 2
