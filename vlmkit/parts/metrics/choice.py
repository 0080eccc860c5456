"""Multiple choice by likelihood: the model reads every choice as its answer, and the likeliest one counts."""

from __future__ import annotations

from pydantic import Field

from vlmkit.contracts import PartConfig


class Config(PartConfig):
    """What there is to choose from."""

    choices: tuple[str, ...] | None = Field(
        None, min_length=2, description="of every question, such as [A, B, C, D]; null: each question brings its own")


class Choice:
    """`choices` is what asks for likelihoods instead of words."""

    def __init__(self, config: Config) -> None:
        self.choices = config.choices or ()

    def __call__(self, answers: list[str], references: list[list[str]]) -> float:
        return sum(answer in some for answer, some in zip(answers, references, strict=True)) / len(answers)


def build(config: Config) -> Choice:
    return Choice(config)


EXAMPLE: dict[str, object] = {"choices": ["yes", "no"]}
