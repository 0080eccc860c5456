"""Our Muon beside torch's, which computes the update in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmkit.train.muon import Muon, orthogonal

SHAPES = [(8, 8), (16, 48), (48, 16), (16, 48), (1, 5), (64, 64), (3, 100)]
RATE, DECAY = 0.02, 0.1


def weights() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    """Like those of training: a direction that stays, and noise; of very different sizes."""
    stays, noise = (torch.Generator().manual_seed(s) for s in (100, step))
    return [10.0 ** (i - 3) * (torch.randn(s, generator=stays) + 0.3 * torch.randn(s, generator=noise))
            for i, s in enumerate(SHAPES)]  # fmt: skip


def test_steps_are_torchs() -> None:
    ours, theirs, start = weights(), weights(), weights()
    one = Muon([{"params": [p], "lr": RATE, "weight_decay": DECAY} for p in ours])
    two = torch.optim.Muon(theirs, lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(6):
        for p, q, g in zip(ours, theirs, gradients(step), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        one.step()
        two.step()
        for p, q, first in zip(ours, theirs, start, strict=True):
            moved = (q - first).norm()
            assert (p - q).norm() < 0.02 * moved, (step, tuple(p.shape))  # bfloat16 has 8 bits: 2 ** -8 each turn


def test_the_closest_orthogonal_matrix() -> None:
    """Singular vectors stay; singular values come near 1, within the band of these coefficients."""
    draw = torch.Generator().manual_seed(3)
    m = torch.randn(4, 12, 30, generator=draw)
    for given in (m, m.transpose(1, 2)):
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        found = u.transpose(1, 2) @ orthogonal(given) @ v.transpose(1, 2)
        values = found.diagonal(dim1=1, dim2=2)
        assert ((values > 0.6) & (values < 1.3)).all()
        torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_one_batch_of_matrices_is_one_by_one() -> None:
    m = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(orthogonal(m), torch.cat([orthogonal(one[None]) for one in m]), atol=1e-5, rtol=1e-5)


def test_what_has_no_gradient_rests() -> None:
    moving, still = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    optimizer = Muon([{"params": [moving, still], "lr": 0.1, "weight_decay": 0.5}])
    moving.grad = torch.ones(3, 4)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 4))
    assert not torch.equal(moving, torch.ones(3, 4))


def test_a_gradient_of_zeros_gives_no_nan() -> None:
    p = torch.ones(3, 4, requires_grad=True)
    p.grad = torch.zeros(3, 4)
    Muon([{"params": [p], "lr": 0.1}]).step()
    assert torch.equal(p, torch.ones(3, 4))


@pytest.mark.parametrize("saved_after", [1, 3])
def test_state_survives(saved_after: int) -> None:
    def steps(optimizer: Muon, params: list[Tensor], which: range) -> None:
        for step in which:
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g
            optimizer.step()

    whole = weights()
    steps(Muon([{"params": whole, "lr": RATE}]), whole, range(5))
    broken = weights()
    before = Muon([{"params": broken, "lr": RATE}])
    steps(before, broken, range(saved_after))
    after = Muon([{"params": broken, "lr": 9.0}])
    after.load_state_dict(before.state_dict())
    steps(after, broken, range(saved_after, 5))
    assert all(torch.equal(p, q) for p, q in zip(whole, broken, strict=True))
