"""Average normalised Levenshtein similarity, of ST-VQA and DocVQA: a slip of the pen costs little, a wrong word all."""

from __future__ import annotations

from pydantic import Field

from vlmkit.contracts import Metric, PartConfig


class Config(PartConfig):
    """From where on an answer is a wrong one."""

    threshold: float = Field(0.5, gt=0, le=1, description="distances from here on count as no similarity at all")


def distance(a: str, b: str) -> int:
    """Letters to insert, remove or replace (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


def build(config: Config) -> Metric:
    def similarity(answer: str, reference: str) -> float:
        one, other = (" ".join(text.lower().split()) for text in (answer, reference))
        apart = distance(one, other) / max(len(one), len(other), 1)
        return 1 - apart if apart < config.threshold else 0.0

    def anls(answers: list[str], references: list[list[str]]) -> float:
        pairs = zip(answers, references, strict=True)
        return sum(max(similarity(answer, one) for one in some) for answer, some in pairs) / len(answers)

    return anls


EXAMPLE = {"threshold": 0.5}
