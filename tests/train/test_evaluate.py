"""Evaluation: `tiny` answers, metrics judge, what is bad is told, results look as lmms-eval writes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmkit
from vlmkit.errors import DataError
from vlmkit.parts.datasets import scenes
from vlmkit.parts.metrics import choice, exact
from vlmkit.train.evaluate import document, evaluate
from vlmkit.train.exam import exam, likeliest

METRICS = {"exact": exact.build(exact.Config())}


@cache
def tiny() -> tuple[Any, Any]:
    return vlmkit.load("tiny")


def questions(*skills: str) -> list[Any]:
    return [scenes.conversation(scenes.scene(scenes.HELD_OUT + i, skill)) for i, skill in enumerate(skills)]


def test_it_is_what_generation_says_and_the_exam_agrees() -> None:
    asked = questions(*["shape", "small_text", "colour"] * 3)
    result = evaluate(*tiny(), asked, METRICS, size=4)
    said = [vlmkit.generate(*tiny(), one[:-1], max_new_tokens=20) for one in asked]
    assert [row.answers["exact"] for row in result.rows] == said
    assert [row.references for row in result.rows] == [[one[-1]["content"][0]["text"]] for one in asked]
    right, of = exam(*tiny(), [("all", one) for one in asked])["all"]
    assert 0 < right < of == len(asked)
    assert result.scores["exact"] == right / of == sum(row.scores["exact"] for row in result.rows) / of
    assert not result.left_out


def test_several_right_answers() -> None:
    (one,) = questions("shape")
    right = one[-1]["content"][0]["text"]
    one[-1] = one[-1] | {"answers": ["no such thing", right]}
    assert evaluate(*tiny(), [one], METRICS).scores == {"exact": 1.0}


def test_a_bad_sample_is_told_and_costs_nobody_anything(tmp_path: Path) -> None:
    """A missing picture, a conversation without an answer, one that is no list of messages."""
    good = questions("shape", "shape", "shape")
    lost: Any = {"role": "user", "content": [{"type": "image", "image": str(tmp_path / "no.png")}]}
    bad = [[lost, good[0][-1]], good[0][:-1], [{"role": "nobody", "content": ""}, good[0][-1]]]
    result = evaluate(*tiny(), [good[0], bad[0], good[1], bad[1], bad[2], good[2]], METRICS)
    assert [row.sample for row in result.rows] == [0, 2, 5]
    assert result.scores == evaluate(*tiny(), good, METRICS).scores
    assert list(result.left_out) == [3, 1, 4]
    assert "no.png" in result.left_out[1]
    assert document(result, "t", {})["n-samples"] == {"t": {"original": 6, "effective": 3}}
    with pytest.raises(DataError, match="none of 3 samples"):
        evaluate(*tiny(), bad, METRICS)


def test_a_choice_is_the_likeliest_one() -> None:
    """Against the probabilities of the closed answers, read one by one."""
    model, processor = tiny()
    (one,) = questions("colour")
    offered = ["red", "a square", "blue", "top left"]
    endings = [[*one[:-1], {"role": "assistant", "content": text}] for text in offered]
    each = []
    for ending in endings:
        batch = processor(ending, reply=False, labels=True)
        with torch.no_grad():
            logs = model.logits(model(batch)).log_softmax(-1)
        each.append(sum(float(logs[t - 1, batch.labels[t]]) for t in (batch.labels >= 0).nonzero().flatten().tolist()))
    assert likeliest(model, processor, endings) == each.index(max(each))


def test_choices_come_with_the_question_or_with_the_metric() -> None:
    (one,) = questions("shape")
    right = one[-1]["content"][0]["text"]
    own = [*one[:-1], one[-1] | {"choices": ["red", right]}]
    each = {"choice": choice.build(choice.Config())}
    assert evaluate(*tiny(), [own], each | METRICS).rows[0].answers == {"choice": right, "exact": right}
    wrong = {"choice": choice.build(choice.Config(choices=("red", "blue")))}
    assert evaluate(*tiny(), [own], wrong).scores == {"choice": 0.0}
    with pytest.raises(DataError, match="brings no `choices`"):
        evaluate(*tiny(), [one], each)


def test_results_are_lmms_evals() -> None:
    """Four answers, two of them right: a mean of 0.5 and a standard error of sqrt(1/3) / 2."""
    asked = questions("shape", "shape", "shape", "shape")
    for one in asked[:2]:
        one[-1] = {"role": "assistant", "content": "no such thing"}
    told = document(evaluate(*tiny(), asked, METRICS), "scenes", {"model": "tiny"})
    assert told["results"]["scenes"] == {"alias": "scenes", "exact,none": 0.5,
                                         "exact_stderr,none": pytest.approx((1 / 3) ** 0.5 / 2)}
    assert told["configs"] == {"scenes": {"model": "tiny"}}
    assert set(told) == {"results", "configs", "versions", "n-samples"}
