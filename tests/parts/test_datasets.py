"""Readers of conversations: LLaVA's JSON and JSONL, parquet, tars, mixtures. The files are as strangers store them."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmkit import registry
from vlmkit.errors import DataError, MediaFetchError, PlaceholderError, VlmkitError
from vlmkit.processing.conversation import read

ASKED = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]


def picture(seed: int = 0, side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side + seed), (seed * 20, 100, 50)).save(file, "PNG")
    return file.getvalue()


def build(use: str, **fields: Any) -> Any:
    return registry.find("dataset", use).config.model_validate_json(json.dumps({"use": use, **fields})).build()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for at in range(4):
        (tmp_path / "images" / f"{at}.png").write_bytes(picture(at))
    return tmp_path


@pytest.fixture(params=["json", "jsonl", "pretty"])
def written(request: pytest.FixtureRequest, folder: Path) -> Any:
    """Rows -> the dataset that reads them, in each way they are stored."""

    def write(*rows: Any, **fields: Any) -> Any:
        file = folder / f"mix.{'jsonl' if request.param == 'jsonl' else 'json'}"
        if request.param == "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            text = json.dumps(rows, ensure_ascii=False, indent=2 if request.param == "pretty" else None)
        file.write_text(text, encoding="utf-8")
        return build("conversations", file=str(file), **{"images": str(folder / "images")} | fields)

    return write


def shown(name: str, folder: Path, kind: str = "image") -> dict[str, Any]:
    return {"type": kind, kind: str(folder / "images" / name)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_llava_rows(written: Any, folder: Path) -> None:
    """Placeholders become parts where they stand, and every space stays: the chat style needs none of its own."""
    data = written(
        {"id": "a", "image": "0.png", "conversations": ASKED},
        {"image": ["1.png", "2.png"], "conversations": [
            {"from": "human", "value": "<image> and <image>: same?"}, {"from": "gpt", "value": "No <image> is."},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": 'Yes: "}{][" \\ ü.'}]},
        {"conversations": [{"from": "system", "value": "Be <image> kind."}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": "Hello"}]},
        {"video": "c.mp4", "conversations": [
            {"from": "human", "value": "<image>\nGo"}, {"from": "gpt", "value": "ok"}]},
        {"video": "c.mp4", "image": "3.png", "conversations": [
            {"from": "human", "value": "<video><image>Compare"}, {"from": "gpt", "value": "ok"}]},
    )  # fmt: skip
    assert len(data) == 5
    assert data[0] == [{"role": "user", "content": [shown("0.png", folder), text("\nWhat is it?")]},
                       {"role": "assistant", "content": "A cat."}]
    assert data[1] == [
        {"role": "user", "content": [shown("1.png", folder), text(" and "), shown("2.png", folder), text(": same?")]},
        {"role": "assistant", "content": "No <image> is."},
        {"role": "user", "content": [text("Sure?")]}, {"role": "assistant", "content": 'Yes: "}{][" \\ ü.'}]
    assert data[2] == [{"role": "system", "content": "Be <image> kind."}, {"role": "user", "content": [text("Hi")]},
                       {"role": "assistant", "content": "Hello"}]
    assert data[3][0]["content"] == [shown("c.mp4", folder, "video"), text("\nGo")]
    assert data[4][0]["content"] == [shown("c.mp4", folder, "video"), shown("3.png", folder), text("Compare")]


def test_messages(written: Any, folder: Path) -> None:
    """Parts that name no source take what stands beside, in order; in lists of parts a text is only a text."""
    answer, bare = {"role": "assistant", "content": [text("ok")]}, {"type": "image"}
    data = written(
        {"images": ["0.png", "1.png"], "messages": [asked(text("a <image>"), bare, bare | {"text": None}), answer]},
        {"messages": [asked({"type": "image", "image": "2.png"}, text("b")), answer]},
        {"messages": [asked({"type": "video", "video": ["2.png", "3.png"]}, text("b")), answer]},
        {"messages": [{"role": "user", "content": "<image> c"}, answer], "image": "3.png"},
    )  # fmt: skip
    assert data[0] == [{"role": "user", "content": [text("a <image>"), shown("0.png", folder), shown("1.png", folder)]},
                       answer]
    assert data[1][0]["content"] == [shown("2.png", folder), text("b")]
    frames = [str(folder / "images" / name) for name in ("2.png", "3.png")]
    assert data[2][0]["content"] == [{"type": "video", "video": frames}, text("b")]
    assert data[3][0]["content"] == [shown("3.png", folder), text(" c")]


def asked(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


BAD = [
    ({"conversations": ASKED}, PlaceholderError, "for 1 pictures and 0 clips, but 0 and 0 are there"),
    ({"image": ["0.png", "1.png"], "conversations": ASKED}, PlaceholderError, "for 1 .*, but 2 and 0 are there"),
    ({"image": "0.png", "video": "c.mp4", "conversations": ASKED}, PlaceholderError, "1 and 0 clips|but 1 and 1"),
    ({"image": "../mix.json", "conversations": ASKED}, DataError, r"'\.\./mix\.json' leads out of .*images"),
    ({"image": "/etc/hostname", "conversations": ASKED}, DataError, "leads out of"),
    ({"image": "out/secret.png", "conversations": ASKED}, DataError, "leads out of"),
    ({"image": "loop/a.png", "conversations": ASKED}, DataError, "loop/a.png"),
    ({"image": "a\0b", "conversations": ASKED}, DataError, "ValueError"),
    ({"messages": [{"role": "user", "content": [{"type": "video", "video": ["0.png", "/etc/hostname"]}]}]}, DataError,
     "leads out of"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "path": "/etc/hostname"}]}]}, DataError,
     "leads out of"),
    ({"image": "0.png"}, DataError, "a row has `conversations` or `messages`"),
    ({"conversations": "hello"}, DataError, "a list of turns"),
    ({"conversations": ["hello"]}, DataError, "a turn is a mapping"),
    ({"conversations": [{"from": "bot", "value": "x"}]}, DataError, "no role 'bot'; there are: human"),
    ({"conversations": [{"from": "gpt", "value": None}]}, DataError, "a turn's text is NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "error", "said"), BAD)
def test_bad_rows_tell_their_place(written: Any, folder: Path, row: Any, error: type[VlmkitError], said: str) -> None:
    (folder / "secret.png").write_bytes(picture())
    os.symlink(folder, folder / "images" / "out")
    os.symlink("loop", folder / "images" / "loop")
    data = written({"image": "0.png", "conversations": ASKED}, row)
    with pytest.raises(error, match=said) as caught:
        data[1]
    assert caught.value.where == data.place(1)
    assert data.place(1).endswith((f"mix.jsonl:{2}", "mix.json[1]"))
    assert data[0][1]["content"] == "A cat."


def test_addresses_are_never_fetched(written: Any) -> None:
    data = written({"image": "http://example.com/a.png", "conversations": ASKED})
    with pytest.raises(MediaFetchError, match="addresses are not fetched"):
        read(data[0])


def test_lines(folder: Path) -> None:
    """Numbers of lines count the empty ones; a broken line hurts nobody else; the last one may lack its end."""
    row, file = said("Hi", "Hello"), folder / "mix.jsonl"
    rows = [b"\xef\xbb\xbf" + row + b"\r", b"\r", b"", row[:40], b"\xff\xfe{}", b"[" * 99999, row]
    file.write_bytes(b"\n".join(rows))
    data = build("conversations", file=str(file))
    assert len(data) == 5
    assert [data.place(at).rpartition(":")[2] for at in range(5)] == ["1", "4", "5", "6", "7"]
    assert data[0] == data[4]
    for at, what in ((1, "no JSON: "), (2, "not UTF-8 at byte 0"), (3, "no JSON: ")):
        with pytest.raises(DataError, match=what):
            data[at]


@pytest.mark.parametrize(("content", "said"), [
    (b"", "an empty file"), (b" \n ", "an empty file"), (b'[{"a": "x}"}', "ends within row 1"),
    (b'[{"a": 1}, 5]', "row 1 is no mapping"), (b'[{"a": 1} {"a": 2}]', "no comma stands before"),
    (b'[{"a": 1}] x', "row 1 is no mapping"), (b'["a"]', "row 0 is no mapping"),
])  # fmt: skip
def test_a_list_that_is_none(folder: Path, content: bytes, said: str) -> None:
    (folder / "mix.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        build("conversations", file=str(folder / "mix.json"))


def test_what_is_not_there(tmp_path: Path) -> None:
    for use, field in (("conversations", "file"), ("parquet", "path"), ("webdataset", "path")):
        with pytest.raises(DataError, match="no such") as caught:
            build(use, **{field: str(tmp_path / "nowhere")})
        assert caught.value.where.endswith("nowhere")


def test_an_index_holds_no_row(tmp_path: Path) -> None:
    """Of 20 MB of rows, not a tenth of them."""
    import tracemalloc

    row = json.dumps({"conversations": [{"from": "human", "value": "x" * 4000}, {"from": "gpt", "value": "y"}]})
    (tmp_path / "big.jsonl").write_text((row + "\n") * 5000)
    tracemalloc.start()
    data = build("conversations", file=str(tmp_path / "big.jsonl"))
    assert data[4999][1]["content"] == "y"
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1e6
    assert peak < 12e6  # of 20, a chunk at a time


def rows_of_pictures() -> list[dict[str, Any]]:
    answers = [{"role": "assistant", "content": str(n)} for n in range(3)]
    return [{"messages": [{"role": "user", "content": "<image>" * n + "How many?"}, answers[n]],
             "images": [{"bytes": picture(at), "path": "/nowhere.png"} for at in range(n)]} for n in (1, 0, 2)]


@pytest.mark.parametrize("stored", ["file", "folder", "saved", "splits"])
def test_parquet(tmp_path: Path, stored: str) -> None:
    """Pictures come as the bytes that were stored, also from columns that `datasets` would open by itself."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(rows_of_pictures())
    table = table.cast_column("images", datasets.List(datasets.Image()))
    fields: dict[str, Any] = {"path": str(tmp_path / "data")}
    if stored == "saved":
        table.save_to_disk(tmp_path / "data")
    elif stored == "splits":
        datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "data")
        fields["split"] = "train"
    else:
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data" / "train-0.parquet")
        table.select([1]).to_parquet(tmp_path / "data" / "test-0.parquet")
        fields |= {"path": str(tmp_path / "data" / "train-0.parquet")} if stored == "file" else {"split": "train"}
    data = build("parquet", **fields)
    assert len(data) == 3
    assert data[0][0]["content"] == [{"type": "image", "image": picture(0)}, text("How many?")]
    assert [len(data[at][0]["content"]) for at in range(3)] == [2, 1, 3]
    assert data[2][1] == {"role": "assistant", "content": "2"}
    assert data.place(1).endswith("[1]")


def test_parquet_with_names_and_parts(folder: Path) -> None:
    """Named files lie below a root; parts whose columns do not apply are null."""
    datasets = pytest.importorskip("datasets")
    part = {"type": "text", "text": None, "image": None}
    row = {"messages": [{"role": "user", "content": [part | {"type": "image", "image": "0.png"}, part | {"text": "q"}]},
                        {"role": "assistant", "content": [part | {"text": "a"}]}]}  # fmt: skip
    bad = json.loads(json.dumps(row).replace("0.png", "../secret.png"))
    datasets.Dataset.from_list([row, bad]).to_parquet(folder / "rows.parquet")
    data = build("parquet", path=str(folder / "rows.parquet"), images=str(folder / "images"))
    assert data[0] == [{"role": "user", "content": [shown("0.png", folder), text("q")]},
                       {"role": "assistant", "content": [text("a")]}]
    with pytest.raises(DataError, match="leads out of"):
        data[1]


@pytest.mark.parametrize(("split", "said"), [("dev", "2 parquet files, none of 'dev'"), (None, "cannot read it")])
def test_parquet_that_is_none(tmp_path: Path, split: str | None, said: str) -> None:
    pytest.importorskip("datasets")
    for at in range(2):
        (tmp_path / f"train-{at}.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=said):
        build("parquet", path=str(tmp_path), split=split)


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="not installed") as caught:
        build("parquet", path=str(tmp_path))
    assert "pip install 'vlmkit[train]'" in caught.value.hint


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def said(*conversation: str, **fields: Any) -> bytes:
    turns = [{"from": ("human", "gpt")[at % 2], "value": words} for at, words in enumerate(conversation)]
    return json.dumps({"conversations": turns, **fields}).encode()


def test_tars(tmp_path: Path) -> None:
    """A name up to its first dot is a sample; several pictures come in the order of the tar."""
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "x/7.json", said("Hi", "Hello"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.jpg", picture(1))
        add(tar, "1.json", said("<image>q", "a", image="coco/0001.jpg"))
        add(tar, "1.txt", b"not looked at")
        add(tar, "2.json", said("<image><image>q", "a"))
        add(tar, "2.0.png", picture(2))
        add(tar, "2.1.png", picture(3))
        add(tar, "3.mp4", b"clip")
        add(tar, "3.json", said("<video>q", "a"))
        add(tar, "4.json", json.dumps({"messages": [{"role": "user", "content": [
            {"type": "image", "image": "old/4.b.png"}, {"type": "image", "image": "4.a.png"}]}]}).encode())
        link = tarfile.TarInfo("4.c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        add(tar, "5.png", picture(1))
        add(tar, "6.json", said("<image>q", "a"))
    data = build("webdataset", path=str(tmp_path))
    assert len(data) == 7
    assert data[0] == [{"role": "user", "content": [{"type": "image", "image": picture(1)}, text("q")]},
                       {"role": "assistant", "content": "a"}]
    assert [part.get("image") for part in data[1][0]["content"]] == [picture(2), picture(3), None]
    assert data[2][0]["content"][0] == {"type": "video", "video": b"clip"}
    assert data[6][0]["content"] == [text("Hi")]
    assert data.place(6).endswith("b.tar:x/7")
    for at, what in ((3, "no 'old/4.b.png' beside it"), (4, "0 .json, 1 wanted"), (5, "but 0 and 0 are there")):
        with pytest.raises(VlmkitError, match=what) as caught:
            data[at]
        assert caught.value.where == data.place(at)
    alone = build("webdataset", path=str(tmp_path / "b.tar"))
    assert len(alone) == 1


def test_tars_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder without a \.tar"):
        build("webdataset", path=str(tmp_path))
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        add(tar, "1.json", said("q", "a"))
    with pytest.raises(DataError, match="no tar that is read in place") as caught:
        build("webdataset", path=str(tmp_path))
    assert "unpacked" in caught.value.hint


def lines(file: Path, count: int) -> dict[str, Any]:
    file.write_bytes(b"".join(said(f"{file.stem} {at}", "a") + b"\n" for at in range(count)))
    return {"use": "conversations", "file": str(file)}


def test_a_mixture(tmp_path: Path) -> None:
    """The larger for its weight comes once: 10 of one, and 30 of the other's 8, which has thrice the weight."""
    import vlmkit

    of = [{"data": lines(tmp_path / "one.jsonl", 10), "weight": 1.0, "name": "one"},
          {"data": lines(tmp_path / "two.jsonl", 8), "weight": 3.0}]
    mixed = {"use": "mixture", "of": of}
    run = vlmkit.compose("tiny", "runs/tiny", "data=" + json.dumps(mixed))
    data = run.data.build()
    assert len(data) == 40
    assert data.epochs == {"one": 1.0, "1": 3.75}
    words = [data[at][0]["content"][0]["text"] for at in range(40)]
    assert words[:10] == [f"one {at}" for at in range(10)]
    assert words[10:] == [f"two {at % 8}" for at in range(30)]
    assert data.place(3) == f"one: {tmp_path}/one.jsonl:4"
    assert data.place(18) == f"1: {tmp_path}/two.jsonl:1"
    unweighed = tuple(share.model_copy(update={"weight": None}) for share in run.data.of)
    plain = run.data.model_copy(update={"of": unweighed}).build()
    assert len(plain) == 18
    assert plain.epochs == {"one": 1.0, "1": 1.0}


def test_mixtures_that_are_none(tmp_path: Path) -> None:
    import vlmkit

    one = {"data": lines(tmp_path / "one.jsonl", 2)}
    for of, said in (([one | {"weight": 1.0}, one], "a weight to all of them or to none"), ([], "at least 1 item"),
                     ([{"data": {"use": "conversation", "file": "x"}}], "did you mean 'conversations'")):
        with pytest.raises(VlmkitError, match=said):
            vlmkit.compose("tiny", "runs/tiny", "data=" + json.dumps({"use": "mixture", "of": of}))
