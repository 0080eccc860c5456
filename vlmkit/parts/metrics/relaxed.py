"""ChartQA's relaxed accuracy: numbers may be off by a few per cent, words by nothing but case."""

from __future__ import annotations

import math

from pydantic import Field

from vlmkit.contracts import Metric, PartConfig


class Config(PartConfig):
    """How far a number may be off."""

    tolerance: float = Field(0.05, ge=0, lt=1, description="share of the right number")


def number(text: str) -> float | None:
    """`12`, `-3.5`, `1,200` and `7%`, which is 0.07; None for anything else."""
    text = text.strip().removesuffix(".").replace(",", "")
    scale = 0.01 if text.endswith("%") else 1.0
    try:
        value = float(text.removesuffix("%")) * scale
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def build(config: Config) -> Metric:
    def right(answer: str, reference: str) -> bool:
        said, wanted = number(answer), number(reference)
        if said is None or not wanted:  # a share of nothing is nothing: zero must be said as it is written
            return answer.strip().lower() == reference.strip().lower()
        return abs(said - wanted) <= config.tolerance * abs(wanted) * (1 + 1e-12)

    def relaxed(answers: list[str], references: list[list[str]]) -> float:
        pairs = zip(answers, references, strict=True)
        return sum(any(right(answer, one) for one in some) for answer, some in pairs) / len(answers)

    return relaxed


EXAMPLE = {"tolerance": 0.05}
