"""`vlmkit bench` on the model that is always there: stages that add up, counts that are right, advice that follows."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vlmkit
from vlmkit.cli.bench import advice
from vlmkit.cli.main import main
from vlmkit.view.speed import Speed, bytes_a_token, measure

PLAIN = Speed({"pictures": 0.1, "ids": 0.1, "vision": 0.1, "prefill": 0.7, "decode": 1.0}, 1.0, 10.0, 100, 90, 11, 1000,
              0.01, 1e9, 2000)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmkit.load("tiny")


def test_document(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    Image.new("RGB", (300, 200), "red").save(shown := tmp_path / "red.png")
    assert main(["bench", "tiny", "--image", str(shown), "-n", "5", "--turns", "1", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["stages"]) == ["pictures", "ids", "vision", "prefill", "decode"]
    assert told["new"] == 5
    assert told["first"] > told["stages"]["vision"] > 0
    assert told["rate"] * told["stages"]["decode"] == pytest.approx(4)
    assert told["peak"] > told["weights"] > 0

    main(["tokens", "tiny", str(shown), "--json"])
    counted = json.loads(capsys.readouterr().out)
    assert told["visual"] == (counted[0] if isinstance(counted, list) else counted["files"][0])["tokens"]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny", "-n", "3", "--turns", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["pictures", "ids", "vision", "prefill", "decode"]
    assert "tokens a second" in out


def test_words_alone_see_nothing(tiny: Any) -> None:
    found = measure(*tiny, [{"role": "user", "content": "How many?"}], new=3, turns=1)
    assert (found.visual, found.stages["pictures"], found.stages["vision"]) == (0, 0, 0)


def test_bytes_of_a_token(tiny: Any) -> None:
    """By hand: all matrices and norms but the table of words where it is no head, then keys and values."""
    decoder = tiny[0].decoder
    config = decoder.config
    whole = sum(p.numel() * 4 for name, p in decoder.named_parameters() if config.tied or not name.startswith("embed"))
    positions = 10 * 2 * config.layers * config.kv_heads * config.head * 4
    assert bytes_a_token(tiny[0].float().decoder, 10) == whole + positions


@pytest.mark.parametrize(("stages", "rate", "word"), [
    ({"vision": 0.5}, 10.0, "FeatureCache"),
    ({"pictures": 0.5}, 10.0, "resample=torch"),
    ({}, 95.0, "int8"),
])
def test_advice(stages: dict[str, float], rate: float, word: str) -> None:
    half = SimpleNamespace(decoder=torch.nn.Linear(2, 2, dtype=torch.float16))
    slow = PLAIN._replace(stages={**PLAIN.stages, **stages}, rate=rate)
    assert [word in line for line in advice(slow, half) if "cores" not in line] == [True]
    assert not [line for line in advice(PLAIN, half) if "cores" not in line]
