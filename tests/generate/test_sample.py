"""Choosing the next token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlmkit.errors import PromptError
from vlmkit.generate.sample import Sampling, draw, keep_best, keep_mass, penalize


def logits(rows: int = 6, vocab: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 3


def pick(line: torch.Tensor, how: Sampling, seen: tuple[int, ...] = ()) -> int:
    return draw(line, how, seen, how.generator())


@pytest.mark.parity
@pytest.mark.parametrize("top_k", [1, 5, 49, 50, 200])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_filters_are_theirs(top_k: int, top_p: float, penalty: float) -> None:
    theirs = pytest.importorskip("transformers.generation.logits_process")
    ids = torch.tensor([[3, 3, 7, 49, 0]])
    for line in logits():
        wanted = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, line[None].clone())
        assert torch.equal(penalize(line, ids[0], penalty), wanted[0])
        wanted = theirs.TemperatureLogitsWarper(0.7)(ids, wanted)
        wanted = theirs.TopKLogitsWarper(top_k)(ids, wanted)
        mine = keep_best(penalize(line, ids[0], penalty) / 0.7, top_k)
        assert torch.equal(mine, wanted[0])
        assert torch.equal(keep_mass(mine, top_p), theirs.TopPLogitsWarper(top_p)(ids, wanted)[0])


def test_top_p_by_hand() -> None:
    line = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert torch.isfinite(keep_mass(line, 0.5)).tolist() == [False, True, False, False]
    assert torch.isfinite(keep_mass(line, 0.6)).tolist() == [False, True, False, True]
    assert torch.isfinite(keep_mass(line, 0.8)).tolist() == [False, True, True, True]


def test_zero_temperature_takes_the_best() -> None:
    for line in logits():
        assert pick(line, Sampling()) == pick(line, Sampling(top_k=3, top_p=0.2)) == line.argmax()


def test_a_penalty_turns_the_best_token_over() -> None:
    assert pick(torch.tensor([2.0, 1.5, -1.0]), Sampling(repetition_penalty=2.0), (0, 0, 2)) == 1


def test_frequencies_follow_the_probabilities() -> None:
    line = torch.tensor([0.6, 0.3, 0.1]).log()
    how = Sampling(temperature=1.0, seed=0)
    generator = how.generator()
    drawn = [draw(line, how, (), generator) for _ in range(2000)]
    for id, share in enumerate((0.6, 0.3, 0.1)):
        assert drawn.count(id) / 2000 == pytest.approx(share, abs=0.04)


def test_a_row_of_nan_gives_a_token_all_the_same() -> None:
    assert 0 <= pick(torch.full((50,), torch.nan), Sampling(temperature=1.0, seed=0)) < 50


def test_no_seed_follows_torch() -> None:
    torch.manual_seed(5)
    first = [pick(logits(1)[0], Sampling(temperature=2.0)) for _ in range(8)]
    torch.manual_seed(5)
    assert first == [pick(logits(1)[0], Sampling(temperature=2.0)) for _ in range(8)]
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1},
     {"repetition_penalty": 0.0}, {"seed": -1}, {"temperature": "warm"}, {"temperature": float("inf")},
     {"top_p": None}, {"top_k": 1.5}, {"seed": "x"}, {"seed": 0.5}, {"repetition_penalty": True}],
    ids=str,
)  # fmt: skip
def test_a_wrong_number_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        Sampling(**wrong).check()
