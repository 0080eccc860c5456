"""Every backend gives what eager gives; who cannot serve says why; auto takes the best that can.

The kernels for CUDA run where there is a GPU. Everywhere, the way they are called is tested against their
documentation, written out in `told`.
"""

from __future__ import annotations

import inspect
import logging
import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmkit
from tests.parity import small
from vlmkit.errors import ShapeError, VlmkitError
from vlmkit.model.assemble import backend, unfit
from vlmkit.parts.attention import auto, flash, kernels, varlen
from vlmkit.parts.attention.eager import Eager
from vlmkit.parts.attention.sdpa import Sdpa
from vlmkit.types import KVCache

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
KERNELS = ("flash", "flash3", "flash4", "varlen")
ROOM = 48

CALLS: dict[str, tuple[list[int], list[int] | None, int | None]] = {  # lens, what the cache holds, window
    "rows": ([7, 2, 5], None, None), "equal": ([6, 6], None, None), "a window": ([9, 1, 4], None, 3),
    "an empty row": ([3, 0, 4], None, None), "prompts": ([5, 9], [0, 0], None),
    "a prompt goes on": ([6, 3], [7, 2], None),
    "single tokens": ([1, 1, 1], [5, 0, 30], None), "some rest": ([1, 0, 1, 0], [3, 9, 4, 0], None),
    "a mixture": ([1, 11, 1, 3, 0], [8, 0, 17, 5, 6], None), "a window behind a cache": ([1, 6, 1], [20, 9, 2], 4),
}  # fmt: skip


def draw(lens: list[int], past: list[int] | None, heads: int, kv_heads: int, head: int, **kind: Any) -> Any:
    """Queries, keys and values of a call, and what makes its cache."""
    generator = torch.Generator().manual_seed(len(lens))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(**kind)

    q, k, v = (numbers(sum(lens), n, head) for n in (heads, kv_heads, kv_heads))
    held = [numbers(len(lens), ROOM, kv_heads, head) for _ in "kv"] if past is not None else []
    return (q, k, v), lambda: KVCache(*(x.clone() for x in held), torch.tensor(past)) if held else None


def agree(made: Any, call: str, heads: tuple[int, int, int] = (4, 2, 16), like: float = 2e-6, **kind: Any) -> None:
    """A backend says what eager says, and leaves the same cache."""
    lens, past, window = CALLS[call]
    given, cache = draw(lens, past, *heads, **kind)
    mine, yours = cache(), cache()
    with torch.no_grad():
        wanted = Eager()(*given, torch.tensor(lens), yours, window)
        got = made(*given, torch.tensor(lens), mine, window)
    torch.testing.assert_close(got, wanted, rtol=0, atol=like)
    if mine is not None:
        assert torch.equal(mine.k, yours.k)
        assert torch.equal(mine.v, yours.v)
        assert mine.lens.tolist() == past  # only the decoder advances it


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("call", ["rows", "a window", "a mixture", "a window behind a cache"])
def test_flex_is_eager(call: str) -> None:
    agree(backend("flex"), call)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_answers_token_by_token() -> None:
    """Every step has another length; torch keeps so many traces of a function and no more."""
    made, cache = backend("flex"), KVCache(*(torch.zeros(2, ROOM, 2, 16) for _ in "kv"), torch.tensor([9, 3]))
    with torch.inference_mode():
        for _ in range(12):
            (q, k, v), _cache = draw([1, 1], None, 4, 2, 16)
            twin = KVCache(cache.k.clone(), cache.v.clone(), cache.lens)
            wanted = Eager()(q, k, v, torch.tensor([1, 1]), twin)
            torch.testing.assert_close(made(q, k, v, torch.tensor([1, 1]), cache), wanted, rtol=0, atol=2e-6)
            cache.lens.add_(1)


def test_flex_refuses_to_learn_on_a_cpu() -> None:
    given, _ = draw([3, 2], None, 4, 2, 16)
    with pytest.raises(ShapeError, match="no gradients on a CPU"):
        backend("flex")(given[0].requires_grad_(), *given[1:], torch.tensor([3, 2]))


@pytest.mark.parametrize("name", ["auto", "eager", "sdpa"])
def test_a_model_learns_through_each(name: str) -> None:
    """The gradients of all weights, of two unequal rows, are those of eager."""
    found = []
    for attention in (name, "eager"):
        model = vlmkit.build(small.preset("onevision"), attention=attention, seed=3)
        embeds = torch.randn(9, model.decoder.width, generator=torch.Generator().manual_seed(1))
        model.decoder(embeds, torch.tensor([6, 3])).square().sum().backward()
        found.append({n: p.grad for n, p in model.decoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() != set()
    for name_, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name_], rtol=1e-4, atol=1e-5)


# --- how the kernels are called


def told(q: Tensor, k: Tensor, v: Tensor, spans: list[tuple[slice, slice]], window: tuple[int, int]) -> Tensor:
    """What the kernels are documented to do: query i of n sees keys i + m - n - left to i + m - n + right, of m."""
    out = torch.empty_like(q)
    for ours, theirs in spans:
        one, keys, values = q[ours], k[theirs], v[theirs]
        assert len(keys) >= len(one) > 0
        group = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        at = torch.arange(len(one))[:, None] + len(keys) - len(one)
        key = torch.arange(len(keys))
        seen = (key <= at + window[1]) & ((key >= at - window[0]) | (window[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", one, keys) * q.shape[2] ** -0.5
        out[ours] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)
    return out


def varlen_attn(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                *, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor | None) -> Tensor:
    assert enable_gqa == (query.shape[1] != key.shape[1])
    counts = cu_seq_q.diff() if seqused_k is None else seqused_k
    assert (cu_seq_q.dtype, cu_seq_k.dtype, counts.dtype) == (torch.int32,) * 3
    assert max_q == cu_seq_q.diff().max()
    assert max_k >= counts.max()
    queries = [slice(a, b) for a, b in pairwise(cu_seq_q)]
    keys = [slice(a, a + n) for a, n in zip(cu_seq_k[:-1], counts, strict=True)]
    return told(query, key, value, list(zip(queries, keys, strict=True)), window_size)


def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
                           max_seqlen_q: int, max_seqlen_k: int, *, causal: bool, window_size: Any) -> Tensor:
    assert causal
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size=window_size,
                       enable_gqa=q.shape[1] != k.shape[1], seqused_k=None)  # fmt: skip


def flash_attn_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor,
                            cache_batch_idx: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
    assert causal
    assert (cache_seqlens.dtype, cache_batch_idx.dtype) == (torch.int32, torch.int32)
    return torch.stack([told(one, k_cache[row], v_cache[row], [(slice(None), slice(0, end))], window_size)
                        for one, row, end in zip(q, cache_batch_idx, cache_seqlens, strict=True)])  # fmt: skip


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documentation in the place of the kernels, on a CPU."""
    library = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func,
                              flash_attn_with_kvcache=flash_attn_with_kvcache)  # fmt: skip
    monkeypatch.setattr(flash, "_library", lambda: library)
    monkeypatch.setattr(varlen, "_kernel", lambda: varlen_attn)
    for module in (flash, varlen):
        monkeypatch.setattr(module, "check", lambda q, cache: None)


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize("name", ["flash", "varlen"])
@pytest.mark.parametrize("call", CALLS)
def test_the_kernels_are_called_as_documented(name: str, call: str) -> None:
    for heads in ((4, 2, 16), (3, 3, 8)):
        agree(backend(name), call, heads)


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_any_mixture_is_called_as_documented(name: str) -> None:
    dice, made = random.Random(name), backend(name)
    for n in range(60):
        past = [dice.choice([0, 0, 1, 7, 20]) for _ in range(dice.randint(1, 6))]
        lens = [dice.choice([0, 1, 1, 2, 9]) for _ in past]
        CALLS["any"] = lens, past if n % 2 else None, dice.choice([None, 1, 5])
        agree(made, "any")


def test_the_kernel_of_torch_takes_what_it_is_given() -> None:
    q, at, more = torch.zeros(1, 2, 16), torch.zeros(2), {"window_size": (-1, 0), "enable_gqa": True, "seqused_k": None}
    inspect.signature(varlen._kernel()).bind(q, q, q, at, at, 1, 1, **more)
    assert {"FA3", "FA4"} <= set(torch.nn.attention.list_flash_attention_impls())


# --- who can serve


@pytest.mark.parametrize("name", KERNELS)
def test_who_needs_a_gpu_says_so(name: str) -> None:
    assert unfit(name, CPU, torch.bfloat16) == "needs a CUDA device, and this is cpu"
    with pytest.raises(VlmkitError, match=f"attention: {name} needs a CUDA device, and this is cpu\n  auto takes"):
        vlmkit.build(small.preset("onevision"), attention=name)
    given, _ = draw([2], None, 4, 2, 16)
    with pytest.raises(ShapeError, match="needs a CUDA device"):  # one that was moved after it was assembled
        backend(name)(*given, torch.tensor([2]))


def test_what_runs_anywhere_is_never_refused() -> None:
    for name in ("auto", "eager", "sdpa", "flex"):
        assert unfit(name, CPU, torch.float32, 6) is None


def test_a_checkpoint_is_refused_before_its_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.checkpoint.load.fill", lambda *given: pytest.fail("weights were read"))
    with pytest.raises(VlmkitError, match="varlen needs a CUDA device"):
        vlmkit.load("tiny", attention="varlen")


def test_auto_takes_what_serves_and_tells_each_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    auto._tell.cache_clear()
    with caplog.at_level(logging.INFO, "vlmkit"):
        for _ in range(3):
            assert isinstance(auto.best(CPU, torch.float32, 64), Sdpa)
    assert [r.getMessage() for r in caplog.records] == [
        f"attention: {name} is passed over: it needs a CUDA device, and this is cpu" for name in ("flash", "varlen")]


@pytest.mark.parametrize("call", ["rows", "a mixture"])
def test_auto_is_eager_where_it_chooses(call: str) -> None:
    agree(auto.Auto(), call)


def test_nothing_imports_flash_attn_unless_a_gpu_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_library", lambda: pytest.fail("imported"))
    assert unfit("flash", CPU, torch.bfloat16)
    assert isinstance(auto.best(CPU, torch.bfloat16, 64), Sdpa)


# --- on a GPU


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", [*KERNELS, "auto", "sdpa", "flex"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_all_agree(name: str, dtype: torch.dtype) -> None:
    if why := unfit(name, torch.device("cuda"), dtype, 64):
        pytest.skip(why)
    for call in CALLS:
        for heads in ((8, 2, 64), (4, 4, 128)):
            agree(backend(name), call, heads, like=2e-2, device="cuda", dtype=dtype)


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", [*KERNELS, "sdpa", "flex"])
def test_on_a_gpu_all_learn_alike(name: str) -> None:
    if why := unfit(name, torch.device("cuda"), torch.bfloat16, 64):
        pytest.skip(why)
    found = []
    for made in (backend(name), Eager()):
        given, _ = draw([70, 3, 20], None, 8, 2, 64, device="cuda", dtype=torch.bfloat16)
        leaves = [x.requires_grad_() for x in given]
        made(*leaves, torch.tensor([70, 3, 20])).square().sum().backward()
        found.append([x.grad for x in leaves])
    for mine, yours in zip(*found, strict=True):
        torch.testing.assert_close(mine, yours, rtol=5e-2, atol=5e-2)


@GPU
@pytest.mark.gpu
def test_on_a_gpu_auto_takes_a_kernel_and_moves_with_the_model() -> None:
    made = backend("auto")
    for device, dtype, wanted in (("cuda", torch.bfloat16, False), ("cuda", torch.float32, True),
                                  ("cpu", torch.float32, True)):  # fmt: skip
        given, _ = draw([5, 2], None, 8, 2, 64, device=device, dtype=dtype)
        made(*given, torch.tensor([5, 2]))
        assert isinstance(made.serves, Sdpa) == (wanted or bool(kernels.unfit(torch.device(device), dtype, 64)))
