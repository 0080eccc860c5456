"""W&B by name, where it is installed: offline, with what it wrote read back."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

wandb_internal_pb2: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")

TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import prepare
from vlmkit.train.loop import train
train(*prepare(*sys.argv[3:]), Path(sys.argv[2]), resume="steps=5" in sys.argv)
"""
BLOCK, HEAD = 32768, 7  # of LevelDB's log, which W&B writes: pieces with a checksum, a length, and first, last or whole


def records(file: Path) -> Iterator[Any]:
    """What a file of W&B holds."""
    data, at, whole = file.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, timeout=180,
                          env=os.environ | variables)  # fmt: skip


def test_each_step_is_written_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    out, here = tmp_path / "a: run", str(Path(__file__).parent)
    for steps in ("steps=3", "steps=5"):
        done = python(TRAIN, here, str(out), steps, "save_every=1", "log=wandb", WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    found = [one for file in sorted((out / "wandb").glob("offline-run-*/*.wandb")) for one in records(file)]
    rows = [{"".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
            for record in found if record.WhichOneof("record_type") == "history"]
    assert [(row["_step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in logged]
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {(out / "wandb.id").read_text()}
    told = [json.loads(one.value_json) for run in runs for one in run.config.update if one.key == "steps"]
    assert told == [3, 5]


def test_it_cannot_begin(tmp_path: Path) -> None:
    done = python(TRAIN, str(Path(__file__).parent), str(tmp_path), "log=wandb", WANDB_MODE="online", WANDB_API_KEY="",
                  HOME=str(tmp_path), WANDB_BASE_URL="http://127.0.0.1:9")  # fmt: skip
    assert done.returncode
    assert "log: W&B cannot begin: " in done.stderr
