"""Two processes do what one does: the same losses, the same weights, and a state that either goes on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmkit.train.loop import train
from vlmkit.train.parallel import leaving

LIMIT = 150  # seconds for all processes of a test
WORDS = ("decoder.layers=2", "decoder.width=32", "decoder.heads=4", "decoder.kv_heads=2", "batch=4", "log=none",
         "optimizer=adamw")  # fmt: skip


def child(prepared: Any, words: tuple[str, ...], out: Path, resume: bool, rank: int, world: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port),
                   "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    with leaving():
        model = train(*prepared(*words), out, resume=resume)
        if rank == 0:
            torch.save(model.state_dict(), out / "end.pt")


def run(prepared: Any, out: Path, *words: str, world: int = 2, resume: bool = False) -> dict[str, Tensor]:
    """Train on so many processes; the weights at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=child, args=(prepared, (*WORDS, *words), out, resume, rank, world, port))
                 for rank in range(world)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    late = [process.kill() for process in processes if process.is_alive()]
    assert not late
    assert [process.exitcode for process in processes] == [0] * world
    found: dict[str, Tensor] = torch.load(out / "end.pt", weights_only=True)
    return found


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def close(one: dict[str, Tensor], two: dict[str, Tensor], most: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=most, rtol=0, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(("shard", "most"), [("fsdp", 1e-6), ("tensor", 1e-5)])
def test_twenty_steps_are_those_of_one_process(prepared: Any, tmp_path: Path, shard: str, most: float) -> None:
    words = ("steps=20", "save_every=20", "train.tower=null", f"machine.shard={shard}")
    one = run(prepared, tmp_path / "one", *words, world=1)
    two = run(prepared, tmp_path / "two", *words)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=most)
    close(one, two, 1e-3)
