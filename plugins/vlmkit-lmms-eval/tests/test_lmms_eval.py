"""lmms-eval itself runs a small local task with `tiny`, found by its entry point. Needs lmms-eval installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is installed in an environment of its own; see README.md",
                    exc_type=ImportError)

import vlmkit
from vlmkit.parts.datasets import scenes

TASK = """task: drawn
dataset_path: DATA
dataset_kwargs: {load_from_disk: true}
test_split: test
output_type: generate_until
doc_to_visual: !function drawn.seen
doc_to_text: !function drawn.asked
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 0}
"""
CODE = """def seen(doc):
    return [doc["image"].convert("RGB")]


def asked(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Twelve questions about pictures, as a task of lmms-eval."""
    from datasets import Dataset, DatasetDict

    made = [scenes.scene(scenes.HELD_OUT + at, skill) for at in range(4) for skill in ("shape", "word", "count")]
    rows = [{"image": one.pictures[0], "question": one.questions[0].text, "answer": one.questions[0].answer}
            for one in made]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(tmp_path / "data")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "drawn.yaml").write_text(TASK.replace("DATA", str(tmp_path / "data")))
    (tmp_path / "task" / "drawn.py").write_text(CODE)
    return tmp_path / "task", rows


def test_a_local_task_runs_and_says_what_vlmkit_says(drawn: tuple[Path, list[dict[str, Any]]]) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    folder, rows = drawn
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    told = simple_evaluate(model="vlmkit-tiny", tasks=["drawn"], batch_size=5, device="cpu", task_manager=manager,
                           log_samples=True, bootstrap_iters=0)
    model, processor = vlmkit.load("tiny")
    asked = [[{"role": "user", "content": [{"type": "image", "image": row["image"]},
                                           {"type": "text", "text": row["question"]}]}] for row in rows]
    said = vlmkit.generate(model, processor, asked, max_new_tokens=8)
    samples = sorted(told["samples"]["drawn"], key=lambda one: one["doc_id"])
    assert [one["filtered_resps"][0] for one in samples] == said
    right = sum(answer == row["answer"] for answer, row in zip(said, rows, strict=True)) / len(rows)
    assert right > 0.5
    assert told["results"]["drawn"]["exact_match,none"] == pytest.approx(right)


def test_every_preset_is_a_model() -> None:
    from lmms_eval.models import get_model, list_available_models

    names = set(list_available_models())
    assert {"vlmkit", *(f"vlmkit-{name}" for name in vlmkit.presets() if "/" not in name)} <= names
    assert get_model("vlmkit-llava-1.5-7b").named == "llava-1.5-7b"


@pytest.mark.parametrize(("given", "said"), [
    ({"preset": ""}, "no preset"), ({"preset": "tiny", "batch_size": "auto"}, "batch_size"),
    ({"preset": "tiny", "dtype": "int3"}, "int3"),
])  # fmt: skip
def test_mistakes(given: dict[str, Any], said: str) -> None:
    from vlmkit_lmms_eval.model import Vlmkit

    with pytest.raises(vlmkit.VlmkitError, match=said):
        Vlmkit(**given)


def test_what_cannot_be_asked_is_refused() -> None:
    from vlmkit_lmms_eval.model import part, wishes

    with pytest.raises(vlmkit.VlmkitError, match="num_beams 4"):
        wishes({"num_beams": 4})
    with pytest.raises(vlmkit.VlmkitError, match="no audio"):
        part({"type": "audio", "url": "a.wav"})
    assert wishes({"until": "\n", "temperature": 0.5, "do_sample": False}) == {
        "max_new_tokens": 1024, "top_p": 1.0, "temperature": 0.0, "stop": ["\n"]}
