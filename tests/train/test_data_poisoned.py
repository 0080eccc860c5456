"""A poisoned folder: the run ends, and says what it left out and why."""

from __future__ import annotations

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError
from vlmkit.parts.datasets import conversations
from vlmkit.train.data import Feed

GOOD = 40


def clip(frames: int = 6) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * at, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def talk(question: str, answer: str, **beside: Any) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns, **beside})


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """Forty good conversations about pictures and clips, and one of each kind that cannot be learned from."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for at in range(4):
        Image.fromarray(rng.integers(0, 255, (48, 48 + 8 * at, 3), np.uint8)).save(images / f"{at}.png")
    (images / "clip.mp4").write_bytes(clip())
    (images / "broken.mp4").write_bytes(clip()[:900])
    whole = (images / "0.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    talks = [talk("<video> what moves?", "grey", video="clip.mp4"), talk("hi", "hello"),
             *(talk("<image>\nwhat is it?", "noise", image=f"{at}.png") for at in range(4))]
    good = [talks[at % 6] for at in range(GOOD)]
    bad = [talk("<image>?", "a", image="nowhere.png"), talk("<video>?", "a", video="broken.mp4"),
           talk("<image><image>?", "a", image="1.png"), talk("<image>?", "  ", image="1.png"),
           talk("word " * 40_000, "a"), '{"conversations": [{"from": "human"', talk("<image>?", "a", image="cut.png"),
           talk("<image>?", "a", image="../mix.jsonl"), talk("<image>?", "a", image="http://example.com/a.png")]
    lines = good.copy()
    for at, row in enumerate(bad):
        lines.insert(4 * at + 2, row)
    (tmp_path / "mix.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


WANTED = {  # line -> the error, and words of its text
    3: ("MediaError", "nowhere.png: no such file"), 7: ("MediaDecodeError", "broken.mp4"),
    11: ("PlaceholderError", "for 2 pictures and 0 clips, but 1 and 0 are there"), 15: ("DataError", "an empty answer"),
    19: ("ContextLengthError", "tokens"), 23: ("DataError", "no JSON"), 27: ("MediaDecodeError", "cut.png"),
    31: ("DataError", "leads out of"), 35: ("MediaFetchError", "addresses are not fetched"),
}  # fmt: skip


def check(lines: list[dict[str, Any]], folder: Path) -> None:
    found = {int(line["where"].rpartition(":")[2]): line for line in lines}
    assert len(lines) == len(found)
    assert {line: told["reason"] for line, told in found.items()} == {n: reason for n, (reason, _) in WANTED.items()}
    for number, (_, words) in WANTED.items():
        assert found[number]["where"] == f"{folder}/mix.jsonl:{number}"
        assert words in found[number]["what"], (number, found[number])


def feed(prepared: Any, folder: Path, *words: str, world: int = 1, **given: Any) -> list[Feed]:
    _, processor, run = prepared("steps=40", *words)
    data: PartConfig = conversations.Config(use="conversations", file=str(folder / "mix.jsonl"),
                                            images=str(folder / "images"))
    run = run.model_copy(update={"data": data, "skip": 0.2})
    return [Feed(run, processor, rank=rank, world=world, **given) for rank in range(world)]


HOW = [("batch=5",), ("batch=5", "workers=2"), ("tokens=300",), ("tokens=300", "workers=1")]


@pytest.mark.parametrize("words", HOW, ids=" ".join)
def test_the_same_is_left_out_however_it_is_prepared(prepared: Any, poisoned: Path, tmp_path: Path, words: Any) -> None:
    one, = feed(prepared, poisoned, *words, out=tmp_path / "out")
    taught = sum(len(batch.lens) for batch in one)
    assert taught > GOOD  # more than an epoch, so that each came at least once
    check([bad._asdict() for bad in one.left_out], poisoned)
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    check([json.loads(line) for line in lines], poisoned)
    assert one.summary().startswith(f"left out {len(WANTED)} of {GOOD + len(WANTED)} conversations\n")


def test_two_ranks_leave_out_the_same(prepared: Any, poisoned: Path, tmp_path: Path) -> None:
    feeds = feed(prepared, poisoned, "batch=5", world=2, out=tmp_path / "out")
    assert sum(len(batch.lens) for one in feeds for batch in one) > GOOD
    found = {bad.where: bad for one in feeds for bad in one.left_out}
    check([bad._asdict() for bad in found.values()], poisoned)
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    check([json.loads(line) for line in lines], poisoned)


def test_a_strict_run_stops_at_the_first(prepared: Any, poisoned: Path) -> None:
    one, = feed(prepared, poisoned, "batch=5")
    one.run = one.run.model_copy(update={"skip": 0.0})
    with pytest.raises(DataError, match=r"too many conversations cannot be learned from\nleft out \d of"):
        list(one)


def test_the_command_ends_with_a_summary(poisoned: Path, tmp_path: Path) -> None:
    """`vlmkit train` on the folder itself, in a process of its own."""
    data = {"use": "conversations", "file": str(poisoned / "mix.jsonl"), "images": str(poisoned / "images")}
    run = {"extends": "tiny", "data": data, "train": {"projector": 1e-3}, "steps": 12, "batch": 5, "workers": 1,
           "skip": 0.2, "decoder": {"layers": 1}, "weights": []}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    words = [sys.executable, "-m", "vlmkit", "train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"left out {len(WANTED)} of {GOOD + len(WANTED)} conversations" in done.stdout + done.stderr
    assert "mix.jsonl:3: " in done.stdout + done.stderr
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    check([json.loads(line) for line in lines], poisoned)
