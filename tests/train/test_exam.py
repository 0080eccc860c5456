"""One pass tells what greedy generation would: right or wrong, question by question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import vlmkit
from vlmkit.parts.datasets import scenes
from vlmkit.train.exam import exam, tell
from vlmkit.train.loop import train

SKILLS = ("shape", "colour", "exists", "count", "motion")


def questions(each: int) -> list[tuple[str, list[dict[str, Any]]]]:
    drawn = [scenes.scene(scenes.HELD_OUT + i, skill) for skill in SKILLS for i in range(each)]
    return [(scene.questions[0].skill, scenes.conversation(scene)) for scene in drawn]


def test_verdicts_are_those_of_generation(prepared: Any, tmp_path: Path) -> None:
    """A model that has learned a little answers some questions right and some wrong."""
    model, processor, run = prepared("quick", "data.skills=[exists, shape]")
    train(model, processor, run, tmp_path)
    asked = questions(4)
    assert len({skill for skill, _ in asked}) == len(SKILLS)
    right = []
    for _, conversation in asked:
        said = vlmkit.generate(model, processor, conversation[:-1], max_new_tokens=20)
        right.append(said == conversation[-1]["content"][0]["text"])
    assert 0 < sum(right) < len(right)
    one_by_one = [exam(model, processor, [question])[question[0]][0] for question in asked]
    assert one_by_one == right
    marks = exam(model, processor, iter(asked), size=7)
    assert marks == {skill: (sum(r for r, (s, _) in zip(right, asked, strict=True) if s == skill), 4)
                     for skill in sorted(SKILLS)}  # fmt: skip


def test_it_leaves_no_trace(prepared: Any) -> None:
    model, processor, _ = prepared()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exam(model, processor, questions(1))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert exam(model, processor, []) == {}


def test_the_table() -> None:
    lines = tell({"count": (1, 4), "shape": (4, 4)}).splitlines()
    assert [line.split() for line in lines] == [
        ["count", "25.0", "%", "of", "4"],
        ["shape", "100.0", "%", "of", "4"],
        ["all", "62.5", "%", "of", "8"],
    ]
