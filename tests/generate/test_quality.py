"""What changes with few bits is measured right: by hand, with nothing changed, and with a lot changed."""

from __future__ import annotations

import copy
import json
import re
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmkit
from vlmkit.checkpoint.quantize import quantize
from vlmkit.cli.main import main
from vlmkit.generate.quality import Said, drift, say

MEDIA = Path(__file__).parents[2] / "examples" / "media"
ASKED: list[Any] = [
    [{"role": "user", "content": [{"type": "image", "image": str(MEDIA / "shapes.png")},
                                  {"type": "text", "text": "What color is the star?"}]}],
    [{"role": "user", "content": "Name three colours."}],
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return vlmkit.load("tiny")


def test_by_hand() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[0.0, log(3)]])  # one half each; a quarter and three
    found = drift(Said([0, 1, 1], torch.cat([even, sure])), Said([0, 1, 0, 1], torch.cat([sure, sure])))
    assert found.tokens == 3
    assert found.logits == pytest.approx(log(3))
    assert found.divergence == pytest.approx((log(2) - log(3) / 2) / 2)  # of the first place: ln 2 - ln 3 / 2
    assert found.chosen == 0.5  # of equals the first is chosen
    assert found.same == 2


def test_each_place_is_read_as_it_was_written(tiny: tuple[Any, Any]) -> None:
    for one in say(*tiny, ASKED, 12):
        assert one.logits.argmax(-1).tolist() == one.ids
        assert drift(one, one)[1:] == (0, 0, 1, len(one.ids))


def test_more_is_told_of_more_damage(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    whole, found = say(model, processor, ASKED, 12), []
    few = quantize(copy.deepcopy(model), "int8")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for block in broken.decoder.blocks:
            block.mlp.down.weight.zero_()
    for other in (few, broken):
        found.append([drift(*pair) for pair in zip(whole, say(other, processor, ASKED, 12, whole), strict=True)])
    for little, much in zip(*found, strict=True):
        assert 0 < little.logits < 1 < much.logits
        assert 0 <= little.divergence < 0.01 < much.divergence
    assert all(d.chosen == 1 and d.same == d.tokens for d in found[0])
    assert all(d.chosen < 1 and d.same < d.tokens for d in found[1])


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(["", *map(json.dumps, ASKED)]), "utf-8")
    assert main(["quality", "tiny", "--quantize", "int8", "--conversations", str(file), "-n", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["line 2", "line 3"]
    asked = vlmkit.generate(*vlmkit.load("tiny"), ASKED, max_new_tokens=4, details=True)
    assert [found[line]["tokens"] for line in found] == [len(answer.ids) for answer in asked]
    assert main(["quality", "tiny", "--dtype", "bfloat16", "-n", "3"]) == 0
    assert re.search(r"% of \d tokens are chosen alike", capsys.readouterr().out)


@pytest.mark.parametrize(("words", "told"), [
    ([], "nothing to compare: give --quantize, --dtype, or both"),
    (["--quantize", "int8", "--conversations", "bad.jsonl"], "bad.jsonl, line 2: no JSON"),
    (["--quantize", "int8", "--conversations", "none.jsonl"], "none.jsonl: holds no conversation"),
], ids=["nothing", "no JSON", "empty"])  # fmt: skip
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("[]\n{\n", "utf-8")
    Path("none.jsonl").write_text("\n", "utf-8")
    assert main(["quality", "tiny", *words]) == (3 if "--conversations" in words else 2)
    assert told in " ".join(capsys.readouterr().err.replace("│", "").split())
