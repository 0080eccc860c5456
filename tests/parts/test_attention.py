"""Attention backends against the one that is written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmkit.parts.attention import eager, sdpa
from vlmkit.types import KVCache

HEAD, ROOM = 8, 24


def draw(total: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(total, n, HEAD, generator=generator) for n in (heads, kv_heads, kv_heads))
    return q, k, v


def filled(lens: list[int], kv_heads: int) -> KVCache:
    """A cache that holds something; behind it zeros, as a decoder makes it."""
    generator = torch.Generator().manual_seed(7)
    k, v = (torch.randn(len(lens), ROOM, kv_heads, HEAD, generator=generator) for _ in "kv")
    empty = torch.arange(ROOM)[None] >= torch.tensor(lens)[:, None]
    k, v = (x.masked_fill(empty[..., None, None], 0) for x in (k, v))
    return KVCache(k, v, torch.tensor(lens))


def both(q: Tensor, k: Tensor, v: Tensor, lens: list[int], past: list[int] | None, window: int | None) -> Any:
    """What eager and sdpa say, each with a cache of its own."""
    caches = [None if past is None else filled(past, k.shape[1]) for _ in "ab"]
    backends = eager.build(eager.Config()), sdpa.build(sdpa.Config())
    seen = [b(q, k, v, torch.tensor(lens), c, window) for b, c in zip(backends, caches, strict=True)]
    return seen, caches


@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0, 1, 1, 2, 5, 8])), min_size=1, max_size=6),
    cached=st.booleans(),
    window=st.none() | st.integers(1, 12),
    shape=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
)
@settings(max_examples=150, deadline=None)
def test_sdpa_is_eager(rows: list[tuple[int, int]], cached: bool, window: int | None, shape: tuple[int, int]) -> None:
    past, lens = [p for p, _ in rows], [n for _, n in rows]
    q, k, v = draw(sum(lens), *shape)
    (wanted, got), caches = both(q, k, v, lens, past if cached else None, window)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    if cached:
        assert torch.equal(caches[0].k, caches[1].k)
        assert torch.equal(caches[0].v, caches[1].v)
        assert caches[1].lens.tolist() == past  # only the decoder advances it


def test_a_worked_example() -> None:
    """Equal scores: each position takes the mean of what it sees."""
    q, v = torch.zeros(5, 1, 2), torch.arange(10.0).view(5, 1, 2)
    for backend in (eager.Eager(), sdpa.Sdpa()):
        got = backend(q, torch.ones(5, 1, 2), v, torch.tensor([3, 2]))[:, 0, 0].tolist()
        assert got == pytest.approx([0, 1, 2, 6, 7])
        near = backend(q, torch.ones(5, 1, 2), v, torch.tensor([5]), None, 2)[:, 0, 0].tolist()
        assert near == pytest.approx([0, 1, 3, 5, 7])


@pytest.mark.parametrize("lens", [[7, 2, 5], [6, 6]], ids=str)
def test_gradients_are_equal(lens: list[int]) -> None:
    found = []
    for backend in (eager.Eager(), sdpa.Sdpa()):
        leaves = [x.requires_grad_() for x in draw(sum(lens), 4, 2)]
        backend(*leaves, torch.tensor(lens)).square().sum().backward()
        found.append([x.grad for x in leaves])
    for mine, yours in zip(*found, strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_a_resting_row_holds_does_not_matter() -> None:
    q, k, v = draw(2, 4, 2)
    clean, spoilt = filled([5, 3, 9], 2), filled([5, 3, 9], 2)
    spoilt.k[1], spoilt.v[1] = torch.nan, torch.inf
    lens = torch.tensor([1, 0, 1])
    assert torch.equal(sdpa.Sdpa()(q, k, v, lens, spoilt), sdpa.Sdpa()(q, k, v, lens, clean))


def test_learning_after_looking() -> None:
    """What is remembered between calls was made without gradients and must still serve with them."""
    backend, lens = sdpa.Sdpa(), torch.tensor([1, 1])
    with torch.inference_mode():
        backend(*draw(2, 4, 2), lens, filled([3, 4], 2))
    leaves = [x.requires_grad_() for x in draw(2, 4, 2)]
    cache = filled([3, 4], 2)
    backend(*leaves, lens, cache).sum().backward()
    assert leaves[0].grad is not None


@torch.no_grad()
def test_eager_shows_its_weights() -> None:
    backend, seen = eager.Eager(), []
    backend.weights.register_forward_hook(lambda module, given, out: seen.append(out))
    backend(*draw(5, 4, 2), torch.tensor([3, 2]))
    assert [tuple(w.shape) for w in seen] == [(4, 3, 3), (4, 2, 2)]
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert weights.triu(1).abs().max() == 0


def test_nothing_new_is_no_error() -> None:
    q, k, v = draw(0, 4, 2)
    for backend in (eager.Eager(), sdpa.Sdpa()):
        assert backend(q, k, v, torch.tensor([0, 0]), filled([2, 3], 2)).shape == (0, 4, HEAD)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3, 700])
@pytest.mark.parametrize("past", [0, 300])
def test_masks_come_in_blocks(past: int, window: int | None) -> None:
    """Long rows behind a past or with a window: no mask of all against all."""
    count, found = 2 * sdpa.BLOCK + 9, []
    q, k, v = draw(count, 4, 2)
    for backend in (eager.Eager(), sdpa.Sdpa()):
        cache = KVCache(torch.ones(1, 1400, 2, HEAD), torch.ones(1, 1400, 2, HEAD), torch.tensor([past]))
        found.append(backend(q, k, v, torch.tensor([count]), cache, window))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
