"""TextVQA's accuracy: of every nine of the ten people, three who say the same are enough."""

from __future__ import annotations

from vlmkit.contracts import Metric, PartConfig
from vlmkit.errors import DataError
from vlmkit.parts.metrics.vqa import line, spelled

FEWEST = 2  # people, of whom one is left out at a time


class Config(PartConfig):
    """Nothing to choose."""


def score(answer: str, people: list[str]) -> float:
    """Mean over leaving out each person of min(how many of the others say so / 3, 1), spelling put right."""
    if len(people) < FEWEST:
        raise DataError(f"{len(people)} answers of people, at least {FEWEST} wanted", where="metric textvqa")
    said = spelled(line(answer))
    same = [spelled(line(one)) == said for one in people]
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)


def accuracy(answers: list[str], references: list[list[str]]) -> float:
    scores = [score(answer, people) for answer, people in zip(answers, references, strict=True)]
    return sum(scores) / max(1, len(scores))


def build(config: Config) -> Metric:
    return accuracy


EXAMPLE: dict[str, object] = {}
