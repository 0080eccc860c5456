"""Its files, its accuracy by hand, and its command as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmkit_textvqa import accuracy, questions

import vlmkit
from vlmkit.cli.main import main
from vlmkit.compose.preset import Run
from vlmkit.errors import DataError
from vlmkit.testing import check_part

EXAMPLE = questions.EXAMPLE


@pytest.fixture
def data() -> Any:
    return questions.build(questions.Config(**EXAMPLE))


@pytest.mark.parametrize("kind", ["dataset", "metric"])
def test_promises(kind: str) -> None:
    assert {outcome.state for outcome in check_part(kind, "textvqa")} == {"passed"}


def test_a_question_as_llava_is_asked_it(data: Any) -> None:
    user, assistant = data[0]
    assert user["content"][1]["text"] == "What does the sign say?\nAnswer the question using a single word or phrase."
    assert assistant["content"] == "stop"
    assert len(assistant["answers"]) == 10
    assert Path(user["content"][0]["image"]).is_file()


@pytest.mark.parametrize(("people", "score"), [(10, 1.0), (4, 1.0), (3, 0.9), (2, 0.6), (1, 0.3), (0, 0.0)])
def test_accuracy(people: int, score: float) -> None:
    # leaving out one who says so: (people - 1) / 3 of the others do; leaving out another: people / 3; both at most 1
    assert accuracy.score("Stop.", ["stop"] * people + ["go"] * (10 - people)) == pytest.approx(score)


def test_accuracy_puts_spelling_right() -> None:
    assert accuracy.accuracy(["the two", "dont"], [["2"] * 10, ["don't"] * 10]) == 1.0


def row(**more: Any) -> dict[str, Any]:
    return {"question_id": 9, "image_id": "x", "question": "q", "answers": ["a"] * 10, **more}


@pytest.mark.parametrize(("text", "said"), [
    ("[]", "is no file of TextVQA"), ("{", "is no file of TextVQA"), ('{"data": [3]}', "a list of questions"),
    (json.dumps({"data": [row(image_id="../../secret")]}), "question 9: .*plain name"),
    (json.dumps({"data": [row(answers=None)]}), "question 9: .*no answers"),
    (json.dumps({"data": [row()]}), r"question 9: there is no picture x\.jpg"),
])  # fmt: skip
def test_bad_files_and_rows(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        questions.build(questions.Config(file=str(file), images=str(tmp_path)))[0]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        questions.build(questions.Config(file=str(tmp_path / "no.json"), images="x"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmkit import plugins

    monkeypatch.setattr("vlmkit.cli.main.default", plugins.default)
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question_id": 0, "answer": "Stop"}\n{"question_id": 1, "answer": "24"}\n')
    assert main(["textvqa", EXAMPLE["file"], str(answers)]) == 0
    assert capsys.readouterr().out == "accuracy 33.33% of 3 questions, 1 of them unanswered\n"
    answers.write_text('[{"question_id": 7, "answer": "Stop"}]')
    assert main(["textvqa", EXAMPLE["file"], str(answers), "--json"]) == 3
    assert "1 answers to questions that are not there, such as 7" in capsys.readouterr().err


def test_the_run(data: Any) -> None:
    run = vlmkit.compose("tiny", "textvqa", f"data.file={EXAMPLE['file']}", f"data.images={EXAMPLE['images']}")
    assert isinstance(run, Run)
    assert len(run.data.build()) == len(data) == 3
