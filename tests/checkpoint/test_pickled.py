"""Pickled weights, for who asks: converted in a child process that makes tensors and nothing else (C1, C22, C23)."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import theirs
from safetensors.torch import load_file

import vlmkit
from vlmkit.checkpoint import pickled
from vlmkit.checkpoint.files import pickled as chosen
from vlmkit.checkpoint.pickled import attempt, convert, unpickled
from vlmkit.checkpoint.tensors import headers, read
from vlmkit.cli.main import main
from vlmkit.errors import CheckpointSafetyError, WeightsError


class Command:
    """A pickle that runs a command when it is read."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return os.system, (self.words,)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    return tmp_path / "old"


def test_every_tensor_comes_over(folder: Path, out: Path) -> None:
    """Two shards of both kinds of file, tied names, a view, half precision; and what else the folder says."""
    tied = torch.arange(4.0)
    torch.save({"a": tied, "b": tied, "t": torch.randn(2, 3).t()}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.ones(3).half()}, folder / "pytorch_model-00002-of-00002.bin",
               _use_new_zipfile_serialization=False)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    convert(folder, out)
    assert sorted(f.name for f in out.iterdir()) == ["config.json", "model-00001-of-00002.safetensors",
                                                     "model-00002-of-00002.safetensors"]
    found = dict(read(headers(out)))
    wanted = {k: v for f in sorted(folder.glob("*.bin")) for k, v in torch.load(f, weights_only=True).items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) and found[k].dtype == wanted[k].dtype for k in wanted)


def test_a_command_is_not_run(folder: Path, out: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Command(f"touch {folder / 'pwned'}")}, folder / "model.pt")
    with pytest.raises(CheckpointSafetyError, match=r"asks for (posix|os)\.system") as error:
        convert(folder, out)
    assert str(folder / "model.pt") in str(error.value)
    assert not (folder / "pwned").exists()
    assert not [*out.rglob("*.safetensors")]


def test_states_of_a_training_are_not_opened() -> None:
    beside = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt", "config.json"]
    assert chosen([*beside, "mm_projector.bin"]) == ["mm_projector.bin"]
    assert chosen([*beside, "pytorch_model.bin", "mm_projector.bin"]) == ["pytorch_model.bin"]
    assert chosen(beside) == []


@pytest.mark.parametrize(("data", "told"), [
    (pickle.dumps(Command("touch pwned"), 2), "asks for (posix|os).system"), (b"", "cannot be"),
    (b"\x80\x02.", "cannot be"), (b"PK\x03\x04" + bytes(100), "cannot be"), (b"version https://git-lfs", "cannot be"),
    (bytes(10), "cannot be"),
    ({"a": 1}, "'a' is a int, wanted a tensor"), ([torch.ones(1)], "holds a list"),
    ({"a": torch.tensor([float("nan")])}, "1 NaN"), ({"a": torch.ones(1, dtype=torch.complex64)}, "complex64"),
    ({"a": torch.ones(3), 7: torch.ones(3)}, "holds a dict, wanted names and tensors"),
    ({"a": torch.ones(1).expand(10**15)}, "memory than its size explains")])
def test_what_is_no_weights(folder: Path, out: Path, data: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the child does it. The last is a few bytes: a number, and a view of it with more rows than there is memory."""
    monkeypatch.chdir(folder)
    if isinstance(data, bytes):
        (folder / "pytorch_model.bin").write_bytes(data)
    else:
        torch.save(data, folder / "pytorch_model.bin")
    found = attempt(folder / "pytorch_model.bin", out / "model.safetensors")
    assert re.search(told, found["what"])
    assert found["safety"] == ("cannot" in told or "system" in told or "memory" in told)
    assert not (folder / "pwned").exists()
    assert not (out / "model.safetensors").exists()


def test_memory_is_bounded(folder: Path, out: Path) -> None:
    """Four thousand million bytes are there on most machines, and are not given to a file of some thousand."""
    torch.save({"a": torch.ones(1).expand(10**9)}, folder / "pytorch_model.bin")
    assert (folder / "pytorch_model.bin").stat().st_size < 5000
    with pytest.raises(CheckpointSafetyError, match="memory than its size explains"):
        convert(folder, out)


def test_time_is_bounded(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    monkeypatch.setattr(pickled, "PATIENCE", 1e-4)
    with pytest.raises(CheckpointSafetyError, match="took too long"):
        convert(folder, out)


def test_a_link_that_leaves_the_folder(folder: Path, out: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "other.bin")
    (folder / "pytorch_model.bin").symlink_to(tmp_path / "other.bin")
    with pytest.raises(CheckpointSafetyError, match="link that leaves"):
        convert(folder, out)


def test_nothing_to_convert(folder: Path, out: Path) -> None:
    with pytest.raises(WeightsError, match="no pickled weights"):
        convert(folder, out)


def test_import_of_a_pickled_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused without the word; with it, every weight is there, and nothing stays beside what was written."""
    old = tmp_path / "old"
    theirs.model("llava").save_pretrained(old)
    theirs.reader("llava").processor.save_pretrained(old)
    weights = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    torch.save(weights, old / "pytorch_model.bin")
    place = tmp_path / "new"
    assert main(["import", str(old), "--out", str(place / "ours")]) == 3
    assert "convert it: python" in capsys.readouterr().err
    assert main(["import", str(old), "--unpickle", "--out", str(place / "ours")]) == 0
    assert capsys.readouterr().out.startswith("old\n")
    assert [f.name for f in place.iterdir()] == ["ours"]
    model, _ = vlmkit.load(place / "ours")
    wanted = theirs.weights("llava")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_the_copy_goes_away_after_a_failure(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").symlink_to(tmp_path)
    with pytest.raises(CheckpointSafetyError), unpickled(folder, "old", tmp_path / "place"):
        pass
    assert not [*(tmp_path / "place").iterdir()]
