"""Killed at any moment, during saves too, a training goes on as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlmkit.errors import ResumeError, SaveError
from vlmkit.train import state
from vlmkit.train.loop import train

STEPS, EVERY, SAVING = 24, 2, -1
WORDS = (f"steps={STEPS}", f"save_every={EVERY}", "data.turns=1", "log=none", "tower.options.drop_path_rate=0.2")


def child(prepared: Any, out: Path, told: Any) -> None:
    """What a process does: begin, or go on; tell each step and the start of each save; leave the weights."""
    save = state.save

    def telling(*given: Any) -> Path:
        told.put(SAVING)
        return save(*given)

    state.save = telling
    with suppress(KeyboardInterrupt):
        model = train(*prepared(*WORDS), out, resume=bool(state.saves(out)), told=lambda done: told.put(done.step))
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, out / "end.safetensors")


def start(prepared: Any, out: Path) -> tuple[Any, Any]:
    """A process, and what it tells."""
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    process = fork.Process(target=child, args=(prepared, out, told))
    process.start()
    return process, told


def wait(process: Any, told: Any, goal: int) -> None:
    """Until it has told a step, or a save; or ended."""
    end = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < end:
        if told.empty():
            time.sleep(0.001)
        elif (step := told.get()) == goal or step >= goal > SAVING:
            return


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in map(json.loads, (out / "log.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(prepared: Any, tmp_path: Path, kills: int) -> None:
    """Every second time within a save."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process, told = start(prepared, whole)
    wait(process, told, STEPS)
    process.join(60)
    assert process.exitcode == 0
    draw, reached = random.Random(5), 0
    for kill in range(kills):
        process, told = start(prepared, broken)
        if kill % 2:
            wait(process, told, SAVING)
            time.sleep(draw.random() * 0.005)
        else:
            wait(process, told, min(reached + draw.randint(0, 3), STEPS - 2))
        process.kill()
        process.join(30)
        if state.saves(broken):
            saved = state.newest(broken)
            assert not saved.skipped
            assert saved.told["step"] >= reached
            reached = saved.told["step"]
    process, told = start(prepared, broken)
    wait(process, told, STEPS)
    process.join(60)
    assert process.exitcode == 0
    assert (broken / "end.safetensors").read_bytes() == (whole / "end.safetensors").read_bytes()
    assert losses(broken) == losses(whole)
    assert [step for step, _ in losses(whole)] == list(range(STEPS))


def test_a_signal_ends_the_step_and_saves_it(prepared: Any, tmp_path: Path) -> None:
    process, told = start(prepared, tmp_path)
    wait(process, told, 4)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    last = losses(tmp_path)[-1][0]
    assert 4 <= last < STEPS - 1
    assert state.newest(tmp_path).told["step"] == last + 1


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "remove", "lock"])
def test_a_damaged_state_is_passed_by_and_told(prepared: Any, tmp_path: Path, damage: str) -> None:
    words = ("steps=6", "save_every=2")
    whole = train(*prepared(*words), tmp_path)
    before, last = state.saves(tmp_path)
    file = last / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "swap":
        file.write_bytes((before / "model.safetensors").read_bytes())
    elif damage == "remove":
        file.unlink()
    else:
        (last / "lock.json").write_text("{}")
    heard: list[str] = []
    again = train(*prepared(*words), tmp_path, resume=True, said=heard.append)
    assert heard[0].startswith(f"skipped a damaged state: {last}")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


def test_no_state_is_whole(prepared: Any, tmp_path: Path) -> None:
    model, processor, run = prepared("steps=2")
    train(model, processor, run, tmp_path)
    for folder in state.saves(tmp_path):
        (folder / "state.json").write_text('{"step": 1}')
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ResumeError, match=r"no state is whole\n.*state\.json is not what was written"):
        train(model, processor, run, tmp_path, resume=True)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())


def test_other_frozen_weights(prepared: Any, tmp_path: Path) -> None:
    train(*prepared("steps=2", "train.tower=null"), tmp_path)
    model, processor, run = prepared("steps=4", "train.tower=null", "seed=0")
    with torch.no_grad():
        next(model.tower.parameters()).mul_(1.5)
    with pytest.raises(ResumeError, match="frozen weights are other ones"):
        train(model, processor, run, tmp_path, resume=True)


def test_one_writer(prepared: Any, tmp_path: Path) -> None:
    def told(done: Any) -> None:
        with pytest.raises(SaveError, match=f"process {os.getpid()}"):
            train(*prepared("steps=1"), tmp_path)

    train(*prepared("steps=1"), tmp_path, told=told)


def test_the_last_two_are_kept(prepared: Any, tmp_path: Path) -> None:
    train(*prepared("steps=6", "save_every=1"), tmp_path)
    assert [folder.name for folder in state.saves(tmp_path)] == ["00000005", "00000006"]
