"""Rotary positions by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlmkit.parts.decoders.rope import Rope, angles, frequencies, grown, rotate

CPU = torch.device("cpu")


def test_frequencies() -> None:
    got = frequencies(4, 10000.0, Rope(), 64, CPU)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([1, 0.01])
    assert frequencies(4, 10000.0, Rope(type="linear", factor=2.5), 64, CPU).tolist() == pytest.approx([0.4, 0.004])


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    """Bands by the number of turns within `original`: 4 or more are kept, fewer than 1 stretched, a ramp between."""
    rope = Rope(type="llama3", factor=8.0, low=1.0, high=4.0, original=100)
    plain = frequencies(6, 1000.0, Rope(), 64, CPU).tolist()  # 1, 0.1, 0.01: 15.9, 1.59 and 0.159 turns in 100
    turns = 100 * plain[1] / (2 * math.pi)
    share = (turns - 1) / 3
    wanted = [plain[0], (1 - share) * plain[1] / 8 + share * plain[1], plain[2] / 8]
    assert frequencies(6, 1000.0, rope, 800, CPU).tolist() == pytest.approx(wanted, rel=1e-5)


def test_dynamic_grows_the_base_with_the_length() -> None:
    """theta * (factor * length / context - (factor - 1)) ** (head / (head - 2)), from the context on."""
    got = grown(4, 10000.0, Rope(type="dynamic", factor=2.0), 8, torch.tensor([3, 8, 16]))
    told = Rope(type="dynamic", factor=2.0, original=8)
    assert torch.equal(got, grown(4, 10000.0, told, 16, torch.tensor([3, 8, 16])))
    assert got[0].tolist() == got[1].tolist() == pytest.approx([1, 0.01])
    assert got[2].tolist() == pytest.approx([1, (10000.0 * 3**2) ** -0.5])


def test_rotation_turns_halves() -> None:
    turn = angles(torch.tensor([2]), torch.tensor([math.pi / 4, 0.0]), torch.float32)
    got = rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), *turn)[0, 0]
    assert got.tolist() == pytest.approx([-3, 2, 1, 4], abs=1e-6)  # the pair (1, 3) turned by a right angle
