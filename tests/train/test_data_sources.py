"""The same conversations give the same batches, whatever they are stored in and whoever reads them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlmkit
from vlmkit.train.data import Feed


def pictures() -> list[bytes]:
    rng = np.random.default_rng(1)
    files = []
    for at in range(3):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 48 + 16 * at, 3), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def store(folder: Path, how: str) -> dict[str, Any]:
    """Twelve conversations: of texts, of one picture and of two."""
    shown, rows = pictures(), []
    for at in range(12):
        some = [at % 3, (at + 1) % 3][: at % 3]
        turns = [{"from": "human", "value": "<image>" * len(some) + f"number {at}?"}, {"from": "gpt", "value": str(at)}]
        rows.append((some, turns))
    for at, data in enumerate(shown):
        (folder / f"{at}.png").write_bytes(data)
    named = [{"image": [f"{one}.png" for one in some], "conversations": turns} for some, turns in rows]
    if how == "json":
        (folder / "mix.json").write_text(json.dumps(named, indent=1))
        return {"use": "conversations", "file": str(folder / "mix.json")}
    if how == "parquet":
        datasets = pytest.importorskip("datasets")
        table = [{"images": [{"bytes": shown[one], "path": None} for one in some], "conversations": turns}
                 for some, turns in rows]
        kind = datasets.Features({"images": datasets.List(datasets.Image()),
                                  "conversations": datasets.List({"from": datasets.Value("string"),
                                                                  "value": datasets.Value("string")})})
        datasets.Dataset.from_list(table, features=kind).to_parquet(folder / "mix.parquet")
        return {"use": "parquet", "path": str(folder / "mix.parquet")}
    if how == "webdataset":
        with tarfile.open(folder / "mix.tar", "w") as tar:
            for at, (some, turns) in enumerate(rows):
                files = [(f"{at:03}.json", json.dumps({"conversations": turns}).encode()),
                         *((f"{at:03}.{i}.png", shown[one]) for i, one in enumerate(some))]
                for name, data in files:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return {"use": "webdataset", "path": str(folder / "mix.tar")}
    halves = []
    for at, half in enumerate((named[:5], named[5:])):
        (folder / f"{at}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in half))
        halves.append({"data": {"use": "conversations", "file": str(folder / f"{at}.jsonl")}})
    return {"use": "mixture", "of": halves}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["json", "parquet", "webdataset", "mixture"])
def test_batches_are_the_same(prepared: Any, tmp_path: Path, how: str, workers: int) -> None:
    """Pictures are decoded in forked processes, from handles that they share."""
    _, processor, run = prepared("steps=5", "tokens=300", f"workers={workers}")
    found = vlmkit.compose("tiny", "runs/tiny", "data=" + json.dumps(store(tmp_path, how))).data
    feed = Feed(run.model_copy(update={"data": found}), processor)
    batches = list(feed)
    shown = [np.asarray(Image.open(io.BytesIO(data))) for data in pictures()]
    order = np.concatenate([np.random.default_rng([run.seed, epoch]).permutation(12) for epoch in range(5)])
    at = 0
    for batch in batches:
        talks = []
        for number in order[at : at + len(batch.lens)]:
            some = [number % 3, (number + 1) % 3][: number % 3]
            asked = [*({"type": "image", "image": shown[one]} for one in some), f"number {number}?"]
            talks.append([{"role": "user", "content": asked}, {"role": "assistant", "content": str(number)}])
        at += len(talks)
        wanted = processor(talks, reply=False, labels=True)
        assert torch.equal(batch.ids, wanted.ids)
        assert torch.equal(batch.labels, wanted.labels)
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(batch.visuals, wanted.visuals, strict=True))
    assert at > 12
    assert not feed.left_out
