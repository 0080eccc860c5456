"""Evaluation: a model answers conversations whose answers are known, and metrics judge what it says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__
from ..errors import DataError, MediaError, PromptError
from ..generate import generate
from .exam import Conversation, likeliest

if TYPE_CHECKING:
    from ..contracts import Metric
    from ..model.vlm import VLM
    from ..processing.processor import Processor

BAD = (DataError, MediaError, PromptError)  # what is wrong with one sample only


class Row(NamedTuple):
    """One question, looked back on; answers and scores by metric."""

    sample: int
    question: str
    references: list[str]
    answers: dict[str, str]
    scores: dict[str, float]


class Result(NamedTuple):
    """Scores by metric, and what they rest on. `left_out` tells which samples could not be asked, and why."""

    scores: dict[str, float]
    rows: list[Row]
    left_out: dict[int, str]


def evaluate(model: VLM, processor: Any, data: Any, metrics: Mapping[str, Metric], size: int = 32,
             max_new_tokens: int = 64, told: Callable[[Row], object] = lambda row: None) -> Result:
    """Ask for the last answer of each conversation of a dataset, `size` of them side by side, greedily.

    A message may bring several right `answers` beside its content, and the `choices` there were. A sample that is bad
    is left out and told, never counted as wrong. Raises DataError when nothing could be asked.
    """
    rows: list[Row] = []
    left_out: dict[int, str] = {}
    for start in range(0, len(data), size):
        some: dict[int, Conversation] = {}
        for at in range(start, min(start + size, len(data))):
            try:
                some[at] = _whole(data[at])
            except BAD as error:
                left_out[at] = str(error)
        for at, answers in _answers(model, processor, some, metrics, max_new_tokens, left_out).items():
            references = right(some[at])
            scores = {name: metric([answers[name]], [references]) for name, metric in metrics.items()}
            rows.append(Row(at, text(some[at][-2]), references, answers, scores))
            told(rows[-1])
    if not rows:
        raise DataError(f"none of {len(data)} samples could be asked; the first: {next(iter(left_out.values()), '')}")
    wanted = [row.references for row in rows]
    scores = {name: metric([row.answers[name] for row in rows], wanted) for name, metric in metrics.items()}
    return Result(scores, rows, left_out)


def text(message: Mapping[str, Any]) -> str:
    """The words of a message."""
    content = message["content"]
    parts = [content] if isinstance(content, str) else content
    return " ".join(part if isinstance(part, str) else part["text"] for part in parts
                    if isinstance(part, str) or "text" in part)


def right(conversation: Conversation) -> list[str]:
    """The answers to the last question that are right."""
    return list(conversation[-1].get("answers") or [text(conversation[-1])])


def _whole(conversation: Conversation) -> Conversation:
    if len(conversation) < 2 or conversation[-1].get("role") != "assistant":
        raise DataError("ends without an answer, so there is nothing to compare with")
    return conversation


def _answers(model: VLM, processor: Any, some: dict[int, Conversation], metrics: Mapping[str, Metric],
             most: int, left_out: dict[int, str]) -> dict[int, dict[str, str]]:
    """By sample and metric. Where one sample is bad, those beside it are asked again without it."""
    choosing = {name: metric.choices for name, metric in metrics.items() if hasattr(metric, "choices")}
    try:
        found: dict[int, dict[str, str]] = {at: {} for at in some}
        if some and len(choosing) < len(metrics):
            asked = [conversation[:-1] for conversation in some.values()]
            said = generate(model, processor, asked, max_new_tokens=most, rows=len(asked))
            found = {at: dict.fromkeys(metrics, answer) for at, answer in zip(some, said, strict=True)}
        for name, choices in choosing.items():
            for at, conversation in some.items():
                found[at][name] = _choose(model, processor, conversation, choices)
        return found
    except BAD as error:
        if len(some) == 1:
            left_out[next(iter(some))] = str(error)
            return {}
    alone = [_answers(model, processor, {at: one}, metrics, most, left_out) for at, one in some.items()]
    return {at: answers for one in alone for at, answers in one.items()}


def _choose(model: VLM, processor: Processor, conversation: Conversation, choices: Sequence[str]) -> str:
    """The likeliest of the metric's choices, or of the question's own."""
    offered: list[str] = list(choices or conversation[-1].get("choices") or ())
    if not offered:
        raise DataError("the question brings no `choices` beside its answer", where="metric choice",
                        hint="give them to the metric: metrics[0].choices=[A,B,C,D]")
    endings = [[*conversation[:-1], {"role": "assistant", "content": choice}] for choice in offered]
    return offered[likeliest(model, processor, endings)]


def document(result: Result, task: str, config: dict[str, Any]) -> dict[str, Any]:
    """What lmms-eval writes about a task: `results`, `configs`, `versions`, `n-samples`."""
    told: dict[str, Any] = {"alias": task}
    for name, score in result.scores.items():
        each = [row.scores[name] for row in result.rows]
        told[f"{name},none"] = score
        told[f"{name}_stderr,none"] = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    asked = len(result.rows)
    return {"results": {task: told}, "configs": {task: config}, "versions": {task: __version__},
            "n-samples": {task: {"original": asked + len(result.left_out), "effective": asked}}}


def line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
