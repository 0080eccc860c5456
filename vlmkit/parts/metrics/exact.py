"""Share of answers that are a right one, letter for letter but for case, spaces and a full stop at the end."""

from __future__ import annotations

from pydantic import Field

from vlmkit.contracts import Metric, PartConfig


class Config(PartConfig):
    """Whether anything is forgiven."""

    strict: bool = Field(False, description="forgive neither case nor spaces nor a full stop")


def plain(text: str) -> str:
    """In small letters, one space between words, no full stop behind them."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def build(config: Config) -> Metric:
    form = str if config.strict else plain

    def exact(answers: list[str], references: list[list[str]]) -> float:
        right = [form(answer) in map(form, some) for answer, some in zip(answers, references, strict=True)]
        return sum(right) / len(right)

    return exact


EXAMPLE: dict[str, object] = {}
