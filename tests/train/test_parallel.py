"""Two processes do what one does: the same losses, the same weights, and a state that either goes on from."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vlmkit
from vlmkit.errors import PresetError, RankError
from vlmkit.train import state
from vlmkit.train.loop import train
from vlmkit.train.parallel import Ranks, Step, leaving, parallelize

LIMIT = 150  # seconds for all processes of a test
WORDS = ("decoder.layers=2", "decoder.width=32", "decoder.heads=4", "decoder.kv_heads=2", "batch=4", "log=none",
         "optimizer=adamw")  # fmt: skip
SEEING = ("tower.model=vit_tiny_patch16_224", "tower.options=null", "tower.options.img_size=64",
          "tower.options.depth=2", "tower.options.embed_dim=32", "tower.options.num_heads=2",
          "tower.side=null")  # fmt: skip
ADAPTERS = ("train.projector=null", "train.separators=null", "train.tower={rate: 1e-2, lora: {rank: 2}}",
            "train.decoder={rate: 1e-2, lora: {rank: 4, alpha: 8}}")  # fmt: skip


class Stop(Exception):
    pass


def child(prepared: Any, words: tuple[str, ...], out: Path, resume: bool, stop: int, rank: int, world: int, port: int
          ) -> None:
    """stop: steps after which the process ends; 0 goes to the end"""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port),
                   "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    given, steps = prepared(*words), count(1)

    def ending(*_: Any) -> None:
        if next(steps) > stop > 0:
            raise Stop

    given[0].decoder.register_forward_pre_hook(ending)
    with leaving(), suppress(Stop):
        model = train(*given, out, resume=resume)
        if rank == 0:
            torch.save(model.state_dict(), out / "end.pt")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    return found


def run(prepared: Any, out: Path, *words: str, world: int = 2, resume: bool = False, stop: int = 0
        ) -> dict[str, Tensor]:
    """Train on so many processes; the weights at the end."""
    port = free_port()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=child, args=(prepared, (*WORDS, *words), out, resume, stop, rank, world, port))
                 for rank in range(world)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    late = [process.kill() for process in processes if process.is_alive()]
    assert not late
    assert [process.exitcode for process in processes] == [0] * world
    found: dict[str, Tensor] = {} if stop else torch.load(out / "end.pt", weights_only=True)
    return found


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in log(out)]


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


def pairs(folder: Path) -> str:
    """Answers that are preferred to others, to pictures and without one."""
    rows = []
    for at in range(8):
        Image.new("RGB", (60, 40), (30 * at, 90, 200)).save(folder / f"{at}.png")
        shown = {"image": f"{at}.png"} if at % 3 else {}
        rows.append({"question": "<image>\n" * len(shown) + "what is it?", "chosen": "a red circle",
                     "rejected": "a blue square, or so"[: 6 + at], **shown})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"data={{use: conversations, file: {folder}/pairs.jsonl}}"


@pytest.mark.parametrize("shard", ["fsdp", "tensor"])
def test_preferences_are_those_of_one_process(prepared: Any, tmp_path: Path, shard: str) -> None:
    """Three pairs a step: one process has two of them, and each reads its share for the reference."""
    words = ("steps=8", "save_every=4", "batch=3", "prefer={beta: 0.5}", pairs(tmp_path), f"machine.shard={shard}",
             "train={tower: null, separators: null, projector: 3e-3, decoder: 3e-3}", *SEEING)  # fmt: skip
    one = run(prepared, tmp_path / "one", *words, world=1)
    two = run(prepared, tmp_path / "two", *words)
    for name in ("loss", "margin", "preferred"):
        told = [[row[name] for row in log(tmp_path / out)] for out in ("one", "two")]
        assert told[0][1:] == pytest.approx(told[1][1:], abs=1e-5)  # in the first step all margins are nothing
    assert losses(tmp_path / "two")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert log(tmp_path / "two")[-1]["margin"] > 1
    close(one, two, 1e-3)
    run(prepared, tmp_path / "two", *words, "steps=10", resume=True, stop=9)  # the reference lies in the save


def test_adapters_are_those_of_one_process(prepared: Any, tmp_path: Path) -> None:
    words = ("steps=8", "save_every=8", "machine.shard=fsdp", *SEEING, *ADAPTERS)
    one = run(prepared, tmp_path / "one", *words, world=1)
    two = run(prepared, tmp_path / "two", *words)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    close(one, two, 1e-4)
    kept = [load_file(tmp_path / name / "adapters/decoder/adapter_model.safetensors") for name in ("one", "two")]
    close(*kept, 1e-4)


def dying(prepared: Any, words: tuple[str, ...], out: Path, at: str, told: Any, rank: int, port: int) -> None:
    """Of two processes the second kills itself, in its fourth step or in its third save."""
    counted, save = count(1), state.save

    def end(*_: Any) -> None:
        if rank == 1 and next(counted) == {"step": 4, "save": 3}[at]:
            os.kill(os.getpid(), signal.SIGKILL)

    def saving(*given: Any) -> Path:
        end()
        return save(*given)

    def preparing(*given: str) -> Any:
        made = prepared(*given)
        if at == "step":
            made[0].decoder.register_forward_pre_hook(end)
        return made

    state.save = saving if at == "save" else save
    try:
        child(preparing, words, out, False, 0, rank, 2, port)
    except RankError as error:
        told.put(str(error))
        raise


@pytest.mark.parametrize("at", ["step", "save"])
def test_a_killed_process_ends_the_other_and_nothing_is_lost(prepared: Any, tmp_path: Path, at: str) -> None:
    words = (*WORDS, "steps=6", "save_every=2", "machine.shard=fsdp", *SEEING, "train.tower=null")
    whole = run(prepared, tmp_path / "whole", *words)
    fork, port = multiprocessing.get_context("fork"), free_port()
    told = fork.SimpleQueue()
    processes = [fork.Process(target=dying, args=(prepared, words, tmp_path / "broken", at, told, rank, port))
                 for rank in range(2)]  # fmt: skip
    for process in processes:
        process.start()
    processes[1].join(LIMIT)
    processes[0].join(30)
    late = [process.kill() for process in processes if process.is_alive()]
    assert not late
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    assert not told.empty()
    assert told.get().startswith("step 3: rank 0 of 2 lost another one: ")
    assert state.newest(tmp_path / "broken").told["step"] == 2
    again = run(prepared, tmp_path / "broken", *words, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_going_on_with_one_and_with_two_again(prepared: Any, tmp_path: Path) -> None:
    """From two processes into one, and back; Muon, and a decoder that learns from step 3 on."""
    words = ("steps=6", "save_every=1", "machine.shard=fsdp", "optimizer=muon", "train.tower=null",
             "train.decoder={rate: 1e-3, from_step: 3}")  # fmt: skip
    one = run(prepared, tmp_path / "one", *words, world=1)
    run(prepared, tmp_path / "many", *words, stop=2)
    saved = state.saves(tmp_path / "many")[-1]
    assert {f.name[:11] for f in saved.glob("*.safetensors")} == {"shard-00001", "shard-00002"}  # each wrote its own
    run(prepared, tmp_path / "many", *words, world=1, resume=True, stop=2)
    many = run(prepared, tmp_path / "many", *words, resume=True)
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    close(one, many, 1e-3)


def test_a_process_without_pictures_does_not_hang(prepared: Any, tmp_path: Path) -> None:
    """Of two conversations one has a picture; the tower learns on both processes."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    said = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "red"}]
    seen = [{"from": "human", "value": "<image>\nwhat is it?"}, said[1]]
    rows = [{"image": "red.png", "conversations": seen}, {"conversations": said}] * 4
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ("steps=3", "batch=2", "machine.shard=fsdp", f"data={{use: conversations, file: {tmp_path}/rows.json}}",
             *SEEING)
    one = run(prepared, tmp_path / "one", *words, world=1)
    two = run(prepared, tmp_path / "two", *words)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    close(one, two, 1e-3)


def refused(prepared: Any, out: Path, words: tuple[str, ...], told: Any, rank: int, world: int, port: int) -> None:
    with suppress(PresetError):
        try:
            child(prepared, (*WORDS, *words), out, False, 0, rank, world, port)
        except PresetError as error:
            told.put(str(error))
            raise


@pytest.mark.parametrize(("words", "where"), [
    (("machine.shard=tensor", *ADAPTERS), "train.tower.lora: adapters are not split"),
    (("machine.shard=fsdp", "machine.quantize=nf4"), "machine.quantize: 2 processes")])
def test_what_processes_cannot_share_is_told_before_the_start(prepared: Any, tmp_path: Path, words: tuple[str, ...],
                                                              where: str) -> None:
    fork, port = multiprocessing.get_context("fork"), free_port()
    told = fork.SimpleQueue()
    processes = [fork.Process(target=refused, args=(prepared, tmp_path / "out", words, told, rank, 2, port))
                 for rank in range(2)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
        process.kill()
    assert [told.get().startswith(where) for _ in processes if not told.empty()] == [True, True]
    assert not (tmp_path / "out").exists()


def answering(prepared: Any, told: Any, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port),
                   "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    model, processor, run = prepared(*WORDS, "machine.shard=tensor")
    with leaving():
        ranks = Ranks(run.machine, torch.device("cpu"))
        parallelize(model.eval(), Step(model), run.machine, ranks.mesh, ())
        said = vlmkit.generate(model, processor, ["which shape?", "hello"], max_new_tokens=12, ignore_eos=True)
        told.put((rank, said))


def test_a_split_model_answers(prepared: Any) -> None:
    fork, port = multiprocessing.get_context("fork"), free_port()
    told = fork.SimpleQueue()
    processes = [fork.Process(target=answering, args=(prepared, told, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
        process.kill()
    model, processor, _ = prepared(*WORDS)
    right = vlmkit.generate(model.eval(), processor, ["which shape?", "hello"], max_new_tokens=12, ignore_eos=True)
    assert sorted(told.get() for _ in processes) == [(0, right), (1, right)]


def test_recomputed_it_is_the_same(prepared: Any, tmp_path: Path) -> None:
    plain = train(*prepared("steps=2"), tmp_path / "plain")
    model, processor, given = prepared("steps=2", "machine.recompute=true")
    train(model, processor, given, tmp_path / "other")
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any("forward" in vars(part) for part in model.modules())


COMPILED = """
import sys
from pathlib import Path
from torch._dynamo.utils import counters
sys.path.insert(0, sys.argv[1])
from conftest import prepare
from vlmkit.train.loop import train
from vlmkit.train.parallel import Apart
model = train(*prepare(*sys.argv[3:]), Path(sys.argv[2]))
assert not any("forward" in vars(part) or isinstance(vars(part).get("attend"), Apart) for part in model.modules())
print(counters["stats"]["unique_graphs"])
"""


@pytest.mark.skipif(not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="no C++ compiler")
def test_compiled_it_is_the_same(prepared: Any, tmp_path: Path) -> None:
    """Batches of many lengths; blocks that are alike share their graphs, and no length makes a new one."""
    words = ("steps=5", "save_every=5", "log=none", "decoder.layers=2", *SEEING)
    train(*prepared(*words), tmp_path / "plain")
    done = subprocess.run([sys.executable, "-c", COMPILED, str(Path(__file__).parent), str(tmp_path / "compiled"),
                           *words, "machine.compile=true"], capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    assert int(done.stdout) <= 5
    found = [state.load(state.saves(tmp_path / name)[-1]) for name in ("plain", "compiled")]
    assert found[0].keys() == found[1].keys()


def test_processes_without_a_plan(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PresetError, match=r"machine.shard: 2 processes"):
        train(*prepared(), tmp_path)
