"""Safetensors files from strangers: every header below is written byte by byte."""

from __future__ import annotations

import json
import os
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model

from vlmkit.checkpoint.files import INDEX, ONE, choose
from vlmkit.checkpoint.tensors import NUMBERS, headers, read
from vlmkit.errors import CheckpointCorruptError, CheckpointFormatError, CheckpointSafetyError, WeightsError
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
    b"\xff" * 64, struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 2) + b"[]",
])  # fmt: skip
def test_no_header_at_all(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ONE).write_bytes(data)
    with pytest.raises(CheckpointFormatError):
        headers(tmp_path)


@pytest.mark.parametrize(("data", "told"), [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13\n", "git lfs pull"),
    (b"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "web page"),
    (b"\xef\xbb\xbf \n<html></html>", "web page"),
])  # fmt: skip
def test_what_comes_instead_of_weights_is_named(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / ONE).write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=told):
        headers(tmp_path)


def test_a_pickle_under_a_good_name(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.ones(1)}, tmp_path / ONE, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointSafetyError, match=r"rename it model\.bin"):
            headers(tmp_path)


def test_a_pickle_that_could_be_a_header(tmp_path: Path) -> None:
    """Its first bytes are a length that fits into the file."""
    (tmp_path / ONE).write_bytes(b"\x80\x04\x95\0\0\0\0\0c")
    os.truncate(tmp_path / ONE, 10_000_000)
    with pytest.raises(CheckpointSafetyError, match="pickle"):
        headers(tmp_path)


def test_a_header_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """0x80 0x02 begins a pickle, and also a header of 640 bytes."""
    put(tmp_path / ONE, json.dumps({"a": FOUR}).encode().ljust(0x280))
    assert (tmp_path / ONE).read_bytes()[:2] == b"\x80\x02"
    assert headers(tmp_path)["a"].shape == (4,)


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
    FOUR | {"shape": [1 << 64, 1 << 64]}, FOUR | {"shape": [0, 1 << 62, 4], "data_offsets": [0, 0]},
    FOUR | {"shape": [4] + [1] * 16}, FOUR | {"shape": [10**4000]}, FOUR | {"shape": [-2, -2]},
    FOUR | {"shape": [True, 4]},
    FOUR | {"data_offsets": [8, 24]}, FOUR | {"data_offsets": "0"}, FOUR | {"data_offsets": [-16, 0]},
    FOUR | {"data_offsets": [0, 16, 32]}, FOUR | {"data_offsets": [0.0, 16.0]}, FOUR | {"data_offsets": None},
    {"dtype": "F32", "shape": [4]}, FOUR | {"shape": [3], "data_offsets": [0, 12]}, FOUR | {"dtype": "F16"},
], ids=lambda entry: str(entry)[:60])  # fmt: skip
def test_tensors_that_are_not_where_the_header_says(tmp_path: Path, entry: Any) -> None:
    put(tmp_path / ONE, {"a": entry}, b"" if entry.get("data_offsets") == [0, 0] else b"\0" * 16)
    with pytest.raises(CheckpointFormatError):
        headers(tmp_path)


@pytest.mark.parametrize(("spans", "data"), [
    ({"a": [0, 16], "b": [12, 28]}, 28), ({"a": [0, 16], "b": [0, 16]}, 16),  # overlap
    ({"a": [0, 16], "b": [20, 36]}, 36), ({"a": [4, 20]}, 20),  # hole
    ({"a": [0, 16]}, 17), ({"a": [0, 16]}, 1000),  # something follows
    ({"a": [0, 16], "b": [16, 32]}, 31), ({"a": [0, 16]}, 0), ({"a": [0, 16], "b": [1 << 40, (1 << 40) + 16]}, 16),
], ids=str)  # fmt: skip
def test_tensors_lie_end_to_end(tmp_path: Path, spans: dict[str, list[int]], data: int) -> None:
    put(tmp_path / ONE, {name: FOUR | {"data_offsets": span} for name, span in spans.items()}, b"\0" * data)
    with pytest.raises(CheckpointFormatError):
        headers(tmp_path)


def test_a_name_is_not_tied_away(tmp_path: Path) -> None:
    notes = {"a": "b", "c": "a", "d": "none", "not plain": "a", "format": "pt"}
    two = {"a": FOUR, "b": FOUR | {"data_offsets": [16, 32]}}
    put(tmp_path / ONE, {"__metadata__": notes, **two}, struct.pack("<8f", *range(8)))
    found = dict(read(headers(tmp_path)))
    assert {n: t.tolist() for n, t in found.items()} == {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7], "c": [0, 1, 2, 3]}


def test_any_order_and_empty_tensors(tmp_path: Path) -> None:
    empty = FOUR | {"shape": [0, 3]}
    put(tmp_path / ONE, {"z": empty | {"data_offsets": [16, 16]}, "b": FOUR | {"data_offsets": [16, 32]}, "a": FOUR,
                         "y": empty | {"data_offsets": [32, 32]}}, struct.pack("<8f", *range(8)))  # fmt: skip
    found = dict(read(headers(tmp_path)))
    assert {n: t.tolist() for n, t in found.items()} == {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7], "y": [], "z": []}


@pytest.mark.parametrize("notes", [[], "pt", {"format": 1}, {"format": None}, {"a": {"b": "c"}}], ids=str)
def test_notes_are_texts(tmp_path: Path, notes: Any) -> None:
    put(tmp_path / ONE, {"__metadata__": notes, "a": FOUR})
    with pytest.raises(CheckpointFormatError, match="__metadata__"):
        headers(tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_an_error_of_ours_or_what_the_library_reads(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed anywhere in the header: read as `safetensors` reads it, or refused."""
    file = tmp_path / ONE
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4), "c": torch.ones(2).half()}, file)
    damaged = bytearray(file.read_bytes())
    end = 8 + struct.unpack("<Q", damaged[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.sampled_from(b'\x00 "[]{},:0123456789-eaFI\xff'))
    file.write_bytes(damaged)
    try:
        found = dict(read(headers(tmp_path), check=False))
    except CheckpointFormatError:
        return
    theirs = load_file(file)
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[n].view(torch.uint8), t.view(torch.uint8)) for n, t in theirs.items())


def test_every_number_comes_back(tmp_path: Path) -> None:
    """Against the library, bit by bit, for all kinds of numbers."""
    draw = torch.Generator().manual_seed(2)
    bits = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=draw)
    tensors = {name: bits.view(dtype).clone() for name, dtype in NUMBERS.items() if dtype != torch.bool}
    tensors |= {"BOOL": bits > 99, "scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0)}
    save_file(tensors, tmp_path / ONE)
    found = dict(read(headers(tmp_path), check=False))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(5000)}, tmp_path / ONE)
    found = dict(read(headers(tmp_path)))
    (tmp_path / ONE).write_bytes(b"")
    assert found["a"].sum() == 5000


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """With a mapped file, this would end the process."""
    save_file({"a": torch.ones(5000), "b": torch.ones(5000)}, tmp_path / ONE)
    stored = headers(tmp_path)
    with (tmp_path / ONE).open("r+b") as opened:
        opened.truncate(30_000)
    with pytest.raises(CheckpointFormatError, match="cut short"):
        dict(read(stored))
    (tmp_path / ONE).unlink()
    with pytest.raises(CheckpointFormatError, match="No such file"):
        dict(read(stored))


def test_a_cut_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / ONE)
    data = (tmp_path / ONE).read_bytes()
    for length in (0, 4, 8, 9, 30, len(data) - 400, len(data) - 50, len(data) - 1):
        (tmp_path / ONE).write_bytes(data[:length])
        with pytest.raises(CheckpointFormatError, match=r"cut short|empty"):
            headers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_weights_are_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    most = torch.full((3,), torch.finfo(dtype).max, dtype=torch.float64)  # large is not infinite
    fine = torch.cat([most, -most, torch.zeros(4)]).to(dtype)
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = fine.clone()
        bad[7] = value
        save_file({"good": fine, "bad.weight": bad, "count": torch.ones(2, dtype=torch.int64)}, tmp_path / ONE)
        told = "1 NaN and 0 infinite" if value != value else "0 NaN and 1 infinite"
        with pytest.raises(CheckpointCorruptError, match=rf"bad\.weight: {told} among 10 numbers") as caught:
            dict(read(headers(tmp_path)))
        assert caught.value.where == str(tmp_path / ONE)
        assert len(dict(read(headers(tmp_path), check=False))) == 3
    save_file({"good": fine, "none": fine[:0]}, tmp_path / ONE)
    assert len(dict(read(headers(tmp_path)))) == 2


def test_tied_names_share_what_they_are_tied_to(tmp_path: Path) -> None:
    """As `safetensors.torch.save_model` writes them."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    save_model(model, str(tmp_path / ONE))
    found = dict(read(headers(tmp_path)))
    assert found.keys() == {"embed.weight", "head.weight"}
    assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()
    assert torch.equal(found["head.weight"], model["embed"].weight)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", ".hidden", "a\\b.safetensors",
             "https://host/x.safetensors", "c:x.safetensors", "a\0b", "x" * 300, "\u202ex"])  # fmt: skip
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


@pytest.mark.parametrize(("said", "told"), [
    ({"a": "two.safetensors", "b": "one.safetensors"}, "'a' .* in two.safetensors, and is in one.safetensors"),
    ({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}, "'c' .* two.safetensors, .* no shard"),
    ({"b": "two.safetensors", "d": "one.safetensors"}, "'a' .* in no shard, and is in one.safetensors"),
], ids=["swapped", "nowhere", "unsaid"])  # fmt: skip
def test_an_index_of_another_save(tmp_path: Path, said: Any, told: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    split(tmp_path, said)
    with pytest.raises(CheckpointFormatError, match=told):
        headers(tmp_path)


@pytest.mark.parametrize("total", [-1, "much", None, [], True, float("inf"), float("nan")])
def test_a_total_that_is_none(tmp_path: Path, total: Any) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": {"a": "one.safetensors"}})
    (tmp_path / INDEX).write_text(text.replace("Infinity", "1e999"))
    with pytest.raises(CheckpointFormatError, match="no index of shards"):
        headers(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 8e9}, "weight_map": {"a": "one.safetensors"}}))
    assert len(headers(tmp_path)) == 1  # published ones are often off


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}', '{"weight_map": {"a": "x", "a": "y"}}',
    '{"weight_map": {"a": "x", "b": 1}}', "[" * 50_000, "\xff",
    '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": null}}',
    '{"metadata": 1, "weight_map": {"a": "x"}}', '{"weight_map": {"a": "x"}, "b": NaN}',
], ids=lambda text: text[:30])  # fmt: skip
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointFormatError, match="is no index of shards"):
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
    assert "weights_only=True" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_the_command_that_converts_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied weights and several files included; afterwards the folder is read, pickles and all."""
    tied = torch.arange(4.0)
    torch.save({"a": tied, "b": tied}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.ones(2, 3).t()}, tmp_path / "pytorch_model-00002-of-00002.bin")
    torch.save(Path("no tensor"), tmp_path / "training_args.bin")
    with pytest.raises(CheckpointSafetyError) as caught:
        headers(tmp_path)
    python, option, code = shlex.split(caught.value.hint.partition("convert it: ")[2])
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = dict(read(headers(tmp_path)))
    assert {n: t.tolist() for n, t in found.items()} == {
        "a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [[1, 1], [1, 1], [1, 1]]}  # fmt: skip


@pytest.mark.parametrize(("names", "chosen"), [
    ([ONE, INDEX, "other.safetensors"], [ONE]),
    ([INDEX, "x.safetensors", "other.safetensors.index.json"], [INDEX]),
    (["net.safetensors.index.json", "net-00001-of-00002.safetensors"], ["net.safetensors.index.json"]),
    (["diffusion_pytorch_model.safetensors", "config.json"], ["diffusion_pytorch_model.safetensors"]),
    (["m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors"],
     ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]),
    (["m-00001-of-00001.safetensors", "pytorch_model.bin"], ["m-00001-of-00001.safetensors"]),
])  # fmt: skip
def test_which_files_hold_the_weights(names: list[str], chosen: list[str]) -> None:
    assert choose(names, "here") == chosen
    assert choose(reversed(names), "here") == chosen


@pytest.mark.parametrize(("names", "told"), [
    (["a.safetensors", "b.safetensors"], "which of these .* a.safetensors, b.safetensors"),
    (["m-00001-of-00001.safetensors", "b.safetensors"], "which of these"),
    (["a-00001-of-00001.safetensors", "b-00001-of-00001.safetensors"], "which of these"),
    (["a.safetensors.index.json", "b.safetensors.index.json"], "which of these"),
    (["m-00001-of-00003.safetensors"], r"m-00002-of-00003.safetensors is missing \(2 of 3\)"),
    (["m-00001-of-99999.safetensors"], "too many shards"),
    (["config.json", "model.safetensors.part"], "no model.safetensors"), ([], "no model.safetensors"),
])  # fmt: skip
def test_it_is_not_clear_what_holds_the_weights(names: list[str], told: str) -> None:
    with pytest.raises(CheckpointFormatError, match=told):
        choose(names, "here")


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=ONE):
        headers(tmp_path)
    with pytest.raises(WeightsError, match="No such file"):
        headers(tmp_path / "none")


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    inner, outer = tmp_path / "in", tmp_path / "out"
    for folder in (inner, outer):
        folder.mkdir()
        save_file({"a": torch.ones(1)}, folder / "x.safetensors")
    (inner / ONE).symlink_to("x.safetensors")
    assert len(headers(inner)) == 1
    (tmp_path / "alias").symlink_to(inner)  # the folder itself may be reached by any way
    assert len(headers(tmp_path / "alias")) == 1
    for target in ("../out/x.safetensors", str(outer / "x.safetensors"), "../out/../in/../out/x.safetensors"):
        (inner / ONE).unlink()
        (inner / ONE).symlink_to(target)
        with pytest.raises(CheckpointSafetyError, match="link that leaves"):
            headers(inner)
    (inner / "y.safetensors").symlink_to(outer / "x.safetensors")
    (inner / ONE).unlink()
    (inner / ONE).symlink_to("y.safetensors")  # two hops
    with pytest.raises(CheckpointSafetyError, match="link that leaves"):
        headers(inner)
    (inner / ONE).unlink()
    (inner / INDEX).symlink_to("/etc/hostname")
    with pytest.raises(CheckpointSafetyError, match="link that leaves"):
        headers(inner)


def test_links_of_a_download_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(1)}, blobs / "0123")
    (snapshot / ONE).symlink_to("../../blobs/0123")
    assert len(headers(snapshot)) == 1
    (tmp_path / "blobs" / "ab").mkdir(parents=True)  # blobs that repositories share
    (blobs / "0123").rename(tmp_path / "blobs" / "ab" / "cd")
    (blobs / "0123").symlink_to("../../blobs/ab/cd")
    assert len(headers(snapshot)) == 1
    (snapshot / ONE).unlink()
    save_file({"a": torch.ones(1)}, tmp_path / "models--a--b" / "secret")
    (snapshot / ONE).symlink_to("../../secret")
    with pytest.raises(CheckpointSafetyError, match="link that leaves"):
        headers(snapshot)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "loop"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    place = tmp_path / ONE
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nothing" if kind == "dangling" else ONE)
    with pytest.raises(WeightsError):
        headers(tmp_path)
