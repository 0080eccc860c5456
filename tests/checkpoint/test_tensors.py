"""Safetensors files from strangers: every header below is written byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlmkit.checkpoint.tensors import INDEX, ONE, headers, read
from vlmkit.errors import CheckpointFormatError, CheckpointSafetyError, WeightsError
from vlmkit.limits import Limits

FOUR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def put(file: Path, header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def split(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_one_file(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 5).bfloat16()}
    save_file(tensors, tmp_path / ONE, metadata={"format": "pt"})
    stored = headers(tmp_path)
    assert {n: (s.dtype, s.shape) for n, s in stored.items()} == {
        "a.weight": ("F32", (2, 3)), "b": ("I64", ()), "c": ("BF16", (0, 5))}  # fmt: skip
    found = dict(read(stored))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


def test_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3), "c": torch.ones(1)}, tmp_path / "two.safetensors")
    split(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    stored = headers(tmp_path)
    assert {n: s.file.name for n, s in stored.items()} == {
        "a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}  # fmt: skip
    assert torch.equal(dict(read(stored))["b"], torch.zeros(3))


@pytest.mark.parametrize("header", [
    b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 50_000, b'{"a": []}', b'{"a": {"dtype": "F32"}}',
    b'{"a": {"shape": [4]}}', b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [4], "data_offsets": [0, 16]}}',
    b'{"a": %(one)s, "a": %(one)s}' % {b"one": json.dumps(FOUR).encode()},
    {"a": FOUR | {"dtype": "F31"}}, {"a": FOUR | {"dtype": ["F32"]}}, {"a": FOUR | {"shape": [-4]}},
    {"a": FOUR | {"shape": [4.0]}}, {"a": FOUR | {"shape": "4"}}, {"a": FOUR | {"shape": 4}},
    {"a": FOUR | {"shape": [True]}}, {"": FOUR}, {"a b": FOUR}, {"a\nb": FOUR}, {"\u202ea": FOUR}, {"a" * 513: FOUR},
], ids=lambda header: str(header)[:40])  # fmt: skip
def test_damaged_headers(tmp_path: Path, header: Any) -> None:
    put(tmp_path / ONE, header)
    with pytest.raises(CheckpointFormatError) as caught:
        headers(tmp_path)
    assert ONE in str(caught.value)
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize("data", [
    b"", b"\x01", b"\x00" * 7, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    b"\xff" * 64, struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 3) + b"{}", b"\x80\x02}q\x00.",
])  # fmt: skip
def test_no_header_at_all(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ONE).write_bytes(data)
    with pytest.raises(CheckpointFormatError):
        headers(tmp_path)


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    put(tmp_path / ONE, json.dumps({"a": FOUR}).encode() + b" " * 2000)
    assert headers(tmp_path)["a"].shape == (4,)
    with Limits(ckpt_max_header_bytes=1000), pytest.raises(CheckpointFormatError) as caught:
        headers(tmp_path)
    assert caught.value.setting == "ckpt.max_header_bytes"
    assert caught.value.limit == 1000


def test_too_many_tensors(tmp_path: Path) -> None:
    put(tmp_path / ONE, {f"t{i}": FOUR | {"shape": [0], "data_offsets": [0, 0]} for i in range(11)}, b"")
    assert len(headers(tmp_path)) == 11
    with Limits(ckpt_max_tensors=10), pytest.raises(CheckpointFormatError, match="too many tensors"):
        headers(tmp_path)


@pytest.mark.parametrize("entry", [
    FOUR | {"shape": [5]}, FOUR | {"data_offsets": [0, 17]}, FOUR | {"data_offsets": [16, 0]},
    FOUR | {"shape": [1 << 40], "data_offsets": [0, 1 << 42]}, FOUR | {"shape": [1 << 62, 1 << 62]},
    FOUR | {"data_offsets": [8, 24]}, FOUR | {"data_offsets": "0"},
], ids=str)  # fmt: skip
def test_tensors_that_are_not_where_the_header_says(tmp_path: Path, entry: Any) -> None:
    """The header alone cannot tell; reading does, before memory is taken."""
    put(tmp_path / ONE, {"a": entry})
    with pytest.raises(CheckpointFormatError):
        dict(read(headers(tmp_path)))


def test_a_cut_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / ONE)
    data = (tmp_path / ONE).read_bytes()
    (tmp_path / ONE).write_bytes(data[:-50])
    with pytest.raises(CheckpointFormatError, match="cannot be read"):
        dict(read(headers(tmp_path)))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", ".hidden", 3, None])  # fmt: skip
def test_shards_stay_in_their_folder(tmp_path: Path, name: Any) -> None:
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    split(tmp_path / "in", {"a": name})
    with pytest.raises(CheckpointSafetyError, match="plain file name"):
        headers(tmp_path / "in")


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    split(tmp_path, {"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointFormatError, match="model-00001-of-00002"):
        headers(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    split(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointFormatError, match=r"'a' is in one\.safetensors too"):
        headers(tmp_path)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}', '{"weight_map": {"a": "x", "a": "y"}}',
    '{"weight_map": {"a": "x", "b": 1}}', "[" * 50_000, "\xff",
], ids=lambda text: text[:30])  # fmt: skip
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointFormatError, match="index"):
        headers(tmp_path)


def test_limits_of_an_index(tmp_path: Path) -> None:
    split(tmp_path, {str(i): f"{i}.safetensors" for i in range(5)})
    for limit, setting in ((Limits(ckpt_max_shards=4), "ckpt.max_shards"),
                           (Limits(ckpt_max_index_bytes=50), "ckpt.max_index_bytes")):  # fmt: skip
        with limit, pytest.raises(CheckpointFormatError) as caught:
            headers(tmp_path)
        assert caught.value.setting == setting


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "all.pkl"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointSafetyError) as caught:
        headers(tmp_path)
    assert name in str(caught.value)
    assert "safetensors.torch.save_file(torch.load(" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=ONE):
        headers(tmp_path)
