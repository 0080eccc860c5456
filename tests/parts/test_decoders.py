"""The decoder by itself: sizes, fields, the cache, what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vlmkit.errors import ContextLengthError, ShapeError
from vlmkit.parts.attention import eager, sdpa
from vlmkit.parts.decoders import layers, transformer

# the family reference, 1.7 (totals of the decoder) with the embedding rows of 1.5; qwen3 as published
COUNTS = {
    "vicuna-7b-v1.5": (32064, 6_738_939_904),
    "vicuna-13b-v1.5": (32064, 13_016_519_680),
    "mistral-7b-v0.2": (32064, 7_242_256_384),
    "mistral-7b-v0.1": (32064, 7_242_256_384),
    "yi-34b": (64064, 34_389_834_752),
    "llama3-8b": (128320, 8_030_785_536),
    "qwen1.5-72b": (152064, 72_287_920_128),
    "qwen1.5-110b": (152064, 111_209_914_368),
    "qwen2-0.5b": (152000, 494_090_112),
    "qwen2-7b": (152128, 7_616_075_264),
    "qwen2-72b": (152128, 72_707_252_224),
    "qwen1.5-0.5b": (152000, 464_053_248),
    "qwen1.5-7b": (152000, 7_721_848_832),
    "qwen3-4b": (151936, 4_022_468_096),
    "qwen3-8b": (151936, 8_190_735_360),
}


def build(backend: Any = sdpa, **fields: Any) -> transformer.Transformer:
    torch.manual_seed(0)
    config = transformer.Config.model_validate({**transformer.EXAMPLE, **fields})
    return transformer.build(config, attention=backend.build(backend.Config()))


def run(decoder: transformer.Transformer, ids: Tensor, lens: list[int], cache: Any = None) -> Tensor:
    return decoder(decoder.embed(ids), torch.tensor(lens), cache)


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size: str) -> None:
    vocab, wanted = COUNTS[size]
    config = transformer.Config.model_validate({"size": size, "vocab": vocab})
    with torch.device("meta"):
        decoder = config.build(attention=sdpa.Sdpa())
    assert sum(p.numel() for p in decoder.parameters()) == wanted
    assert not list(decoder.buffers())


def test_a_size_with_fields_of_ones_own() -> None:
    config = transformer.Config.model_validate({"size": "qwen2-0.5b", "layers": 2, "vocab": 152000})
    assert (config.layers, config.vocab, config.width, config.head) == (2, 152000, 896, 64)
    assert (config.bias, config.tied, config.norms, config.window) == (True, True, False, None)
    narrow = transformer.Config.model_validate({"size": "qwen2-0.5b", "width": 112})
    assert narrow.head == 8  # follows from the width, because no size says it


def test_families_give_defaults_that_fields_override() -> None:
    def config(**fields: Any) -> transformer.Config:
        return transformer.Config.model_validate({**transformer.EXAMPLE, **fields})

    assert config(family="mistral").window == 4096
    assert config(family="mistral", window=None).window is None  # null is not the same as missing
    assert config(family="qwen2").bias
    assert not config(family="qwen2", bias=False).bias
    assert (config(family="qwen3").norms, config(family="qwen3").bias) == (True, False)
    assert transformer.Config.model_validate({"size": "mistral-7b-v0.1"}).window == 4096
    assert transformer.Config.model_validate({"size": "mistral-7b-v0.2"}).window is None


def test_a_bound_config_can_be_written_and_read_again() -> None:
    config = transformer.Config.model_validate({"size": "mistral-7b-v0.2", "layers": 2})
    assert transformer.Config.model_validate(config.model_dump()) == config
    assert transformer.Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("given", "where", "text"),
    [
        ({"size": "qwen2-05b"}, ("size",), "did you mean 'qwen2-0.5b'"),
        ({"size": 7}, ("size",), "valid string"),
        ({**transformer.EXAMPLE, "heads": 4, "kv_heads": 3}, (), "4 heads cannot share 3 kv_heads"),
        ({"width": 32, "layers": 2, "heads": 4, "ffn": 48, "context": 64}, ("vocab",), "required"),
        ({**transformer.EXAMPLE, "width": 33}, (), "4 heads do not divide a width of 33; give `head`"),
        ({**transformer.EXAMPLE, "depth": 2}, ("depth",), "not permitted"),
        ({**transformer.EXAMPLE, "layers": 10**9}, ("layers",), "less than or equal to 1024"),
        ({**transformer.EXAMPLE, "width": 10**15}, ("width",), "less than or equal to 100000"),
        ({**transformer.EXAMPLE, "rope": {"type": "yarn"}}, ("rope", "type"), "linear"),
    ],
)
def test_a_wrong_field_is_named(given: dict[str, Any], where: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        transformer.Config.model_validate(given)
    assert any(e["loc"] == where and text in e["msg"] for e in caught.value.errors()), caught.value.errors()


def test_state_dict_names() -> None:
    names = set(build(family="qwen3", bias=True, layers=1).state_dict())
    attn = {f"blocks.0.attn.{x}.{y}" for x in "qkv" for y in ("weight", "bias")} | {"blocks.0.attn.o.weight"}
    norms = {f"blocks.0.{x}.weight" for x in ("attn_norm", "mlp_norm", "attn.q_norm", "attn.k_norm")}
    mlp = {f"blocks.0.mlp.{x}.weight" for x in ("gate", "up", "down")}
    assert names == attn | norms | mlp | {"embed.weight", "norm.weight", "head.weight"}
    assert names - set(build(family="qwen3", bias=True, layers=1, tied=True).state_dict()) == {"head.weight"}


@torch.no_grad()
def test_weights_can_be_drawn_after_meta() -> None:
    """Every module knows how to start, in any order of walking."""
    with torch.device("meta"):
        decoder = build(family="qwen3", bias=True)
    decoder = decoder.to_empty(device="cpu")
    for p in decoder.parameters():
        p.fill_(float("nan"))
    for module in decoder.modules():
        if reset := getattr(module, "reset_parameters", None):
            reset()
    assert decoder.embed.weight.std().item() == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.1)
    assert decoder.blocks[0].mlp.down.weight.std().item() == pytest.approx((2 / (5 * 32) / 4) ** 0.5, rel=0.1)
    assert torch.isfinite(decoder.logits(run(decoder, torch.arange(9), [9]))).all()
    # from a start like this a model is as unsure as it should be: about log(vocab) of loss
    loss = torch.nn.functional.cross_entropy(decoder.logits(run(decoder, torch.arange(64), [64])), torch.arange(64))
    assert abs(loss.item() - 4.16) < 0.5


@torch.no_grad()
@pytest.mark.parametrize("backend", [eager, sdpa], ids=["eager", "sdpa"])
@pytest.mark.parametrize(
    "fields", [{}, {"window": 5}, {"family": "qwen3", "rope": {"type": "linear", "factor": 2}}], ids=str
)
def test_the_cache_changes_nothing(backend: Any, fields: dict[str, Any]) -> None:
    """Prompts in pieces, single tokens, rows that rest, all in one row: as if each had been read at once."""
    decoder, lens = build(backend, **fields), [10, 20, 7, 3]
    ids = torch.randint(64, (40,), generator=torch.Generator().manual_seed(1))
    wanted = run(decoder, ids, lens).split(lens)
    cache, done = decoder.cache(4, 20), [0, 0, 0, 0]
    got: list[list[Tensor]] = [[], [], [], []]
    for counts in ([4, 7, 0, 1], [1, 1, 1, 0], [1, 5, 1, 1], [1, 0, 1, 1], [1, 1, 4, 0], [2, 6, 0, 0]):
        parts = [s[at : at + n] for s, at, n in zip(ids.split(lens), done, counts, strict=True)]
        for row, hidden in enumerate(run(decoder, torch.cat(parts), counts, cache).split(counts)):
            got[row].append(hidden)
            done[row] += counts[row]
        assert cache[0].lens.tolist() == done
    assert done == lens
    for mine, yours in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.cat(mine), yours, rtol=0, atol=1e-5)


class Odd(transformer.Block):
    """A block that is not ours: nothing is known of what its attention needs."""


class Other(transformer.Transformer):
    block = Odd


@torch.no_grad()
@pytest.mark.parametrize("backend", [eager, sdpa], ids=["eager", "sdpa"])
@pytest.mark.parametrize("kind", [transformer.Transformer, Other])
@pytest.mark.parametrize("fields", [{}, {"window": 5}, {"family": "qwen3"}, {"rope": {"type": "dynamic", "factor": 2}}],
                         ids=str)
def test_ends_alone_are_those_of_the_whole(backend: Any, kind: Any, fields: dict[str, Any]) -> None:
    """The last block computes nothing but keys and values for positions that nobody reads, and the cache is as full."""
    torch.manual_seed(0)
    config = transformer.Config.model_validate({**transformer.EXAMPLE, **fields})
    decoder = kind(config, backend.build(backend.Config()))
    one, two = decoder.cache(4, 20), decoder.cache(4, 20)
    ids = torch.randint(64, (34,), generator=torch.Generator().manual_seed(1))
    for counts in ([10, 0, 1, 3], [1, 6, 1, 0], [5, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]):
        some, ids = ids[: sum(counts)], ids[sum(counts) :]
        lens = torch.tensor(counts)
        wanted = run(decoder, some, counts, one)[(lens.cumsum(0) - 1)[lens > 0]]
        got = decoder(decoder.embed(some), lens, two, ends=True)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a.k, b.k, rtol=0, atol=1e-5)
            torch.testing.assert_close(a.v, b.v, rtol=0, atol=1e-5)
            assert torch.equal(a.lens, b.lens)
    assert not len(ids)
    torch.testing.assert_close(decoder(decoder.embed(some), torch.tensor([1]), ends=True), run(decoder, some, [1]))


@torch.no_grad()
def test_ends_alone_spare_the_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = list[int](), transformer.MLP.forward

    def counted(self: Any, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(transformer.MLP, "forward", counted)
    decoder, lens = build(layers=3), torch.tensor([9, 3])
    decoder(torch.zeros(12, 32), lens, decoder.cache(2, 9), ends=True)
    assert seen == [12, 12, 2]
    seen.clear()
    decoder.blocks[2].register_forward_hook(lambda *given: None)  # who watches sees all
    decoder(torch.zeros(12, 32), lens, decoder.cache(2, 9), ends=True)
    assert seen == [12, 12, 12]


@torch.no_grad()
def test_neighbours_change_nothing() -> None:
    decoder, lens = build(), [1, 31, 8, 8, 2, 17, 5, 12]
    ids = torch.randint(64, (sum(lens),), generator=torch.Generator().manual_seed(1))
    together = decoder.logits(run(decoder, ids, lens)).split(lens)
    for alone, among in zip(ids.split(lens), together, strict=True):
        logits = decoder.logits(run(decoder, alone, [len(alone)]))
        torch.testing.assert_close(among, logits, rtol=0, atol=1e-5)


def test_gradients_flow_only_within_a_sequence() -> None:
    decoder = build()
    x = decoder.embed(torch.arange(12)).detach().requires_grad_()
    decoder(x, torch.tensor([5, 4, 3]))[5:9].sum().backward()
    touched = x.grad.abs().sum(1) > 0
    assert touched.tolist() == [False] * 5 + [True] * 4 + [False] * 3


@torch.no_grad()
def test_a_window_forgets() -> None:
    decoder = build(window=4, layers=1)
    ids = torch.randint(64, (12,), generator=torch.Generator().manual_seed(1))
    other = torch.cat((ids[:1] + 1, ids[1:])) % 64
    same = (run(decoder, ids, [12]) == run(decoder, other, [12])).all(1)
    assert same.tolist() == [False] * 4 + [True] * 8  # position 3 still sees position 0, position 4 does not


@torch.no_grad()
def test_dynamic_positions_follow_each_sequence() -> None:
    decoder = build(context=8, rope={"type": "dynamic", "factor": 2})
    ids = torch.arange(26)
    together = run(decoder, ids, [20, 6]).split([20, 6])
    torch.testing.assert_close(together[0], run(decoder, ids[:20], [20]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1], run(decoder, ids[20:], [6]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_half_precision_keeps_positions_whole() -> None:
    """A cast of the module cannot reach the frequencies: positions far out stay distinct."""
    decoder = build(context=8192).bfloat16()
    far = torch.tensor([4097])
    turn = decoder._turn(torch.tensor([1]), far, torch.empty(0))
    assert torch.equal(turn[0][0, 0, :1], torch.tensor([4097.0]).cos())


@torch.no_grad()
def test_meta_tensors_pass() -> None:
    with torch.device("meta"):
        decoder = build()
        hidden = decoder(decoder.embed(torch.zeros(9, dtype=torch.int64)), torch.tensor([4, 5], device="cpu"))
    assert hidden.shape == (9, 32)
    assert hidden.is_meta


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    decoder = build()
    cache = decoder.cache(2, 8)
    run(decoder, torch.arange(6), [6, 0], cache)
    with pytest.raises(ContextLengthError, match="9 tokens does not fit a cache of 8"):
        run(decoder, torch.arange(3), [3, 0], cache)
    assert cache[0].lens.tolist() == [6, 0]
    with pytest.raises(ShapeError, match="3 lens for a cache of 2 rows"):
        run(decoder, torch.arange(3), [1, 1, 1], cache)
    with pytest.raises(ShapeError, match="lens sum to 4 but there are 3 tokens"):
        run(decoder, torch.arange(3), [4])


def test_listing_imports_no_torch() -> None:
    code = "import sys, vlmkit.parts.decoders, vlmkit.parts.attention; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def step(decoder: transformer.Transformer) -> Tensor:
    with torch.inference_mode():
        return run(decoder, torch.arange(9), [5, 4])


def test_layers_are_met_as_they_are() -> None:
    """Without gradients blocks run without their modules: whatever happens to those must still count."""
    decoder = build(family="qwen3")
    first = step(decoder)
    torch.testing.assert_close(run(decoder, torch.arange(9), [5, 4]), first)
    mlp, attn = decoder.blocks[1].mlp, decoder.blocks[1].attn
    with torch.no_grad():
        mlp.up.weight.neg_()  # an optimiser's step
    assert not torch.equal(turned := step(decoder), first)
    mlp.up = torch.nn.Sequential(mlp.up)  # an adapter, a quantised layer
    assert torch.equal(step(decoder), turned)
    mlp.up[0].weight = torch.nn.Parameter(-mlp.up[0].weight)
    assert torch.equal(step(decoder), first)
    seen: list[Tensor] = []
    hook = attn.register_forward_hook(lambda module, given, out: seen.append(out))
    assert torch.equal(step(decoder), first)
    assert [tuple(x.shape) for x in seen] == [(9, 32)]
    hook.remove()
    attn.o.register_forward_pre_hook(lambda module, given: (given[0] * 0,))
    assert not torch.equal(step(decoder), first)


def test_a_copy_and_a_cast_have_their_own_layers() -> None:
    decoder = build()
    before = step(decoder)
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        other.blocks[0].mlp.up.weight.zero_()
    assert torch.equal(step(decoder), before)
    assert not torch.equal(step(other), before)
    assert step(other.bfloat16()).dtype == torch.bfloat16
    assert set(decoder.state_dict()) == set(build().state_dict())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 4, 32, 33])
def test_few_tokens_are_multiplied_the_other_way_round(tokens: int, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(tokens, 48), torch.randn(80, 48), torch.randn(80)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    got, wanted = layers.linear(x, weight, bias), x.double() @ weight.double().t() + bias
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2)


def test_a_long_row_goes_through_the_mlp_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = build(context=2048)
    count = 1033
    monkeypatch.setattr(transformer, "PIECE", 200 * decoder.config.ffn * 4)  # of 200 tokens, about
    ids = torch.arange(count) % 64
    whole = run(decoder, ids, [count])
    with torch.inference_mode():
        torch.testing.assert_close(run(decoder, ids, [count]), whole.detach(), rtol=0, atol=1e-5)


def test_in_place_work_leaves_what_a_replaced_layer_passes_on() -> None:
    decoder = build(ffn=32)
    for block in decoder.blocks:
        block.mlp.gate = torch.nn.Identity()  # its output is its input, which `up` reads, too
    whole = run(decoder, torch.arange(9), [9])
    with torch.inference_mode():
        torch.testing.assert_close(run(decoder, torch.arange(9), [9]), whole.detach(), rtol=0, atol=1e-5)
