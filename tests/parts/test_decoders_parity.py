"""The decoder beside transformers' own: same weights, same numbers, same words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlmkit.parts.attention import eager, sdpa
from vlmkit.parts.decoders import transformer
from vlmkit.parts.decoders.layers import RMSNorm

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {"width": 48, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 199, "context": 128}
LLAMA3 = {"type": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"eps": 1e-5}),
    "llama-all-heads": ("Llama", {"kv_heads": 4}),
    "llama-linear": ("Llama", {"rope": {"type": "linear", "factor": 2.5}}),
    "llama-dynamic": ("Llama", {"rope": {"type": "dynamic", "factor": 2.0}, "context": 24}),
    "llama-llama3": ("Llama", {"rope": LLAMA3, "theta": 500.0}),
    "mistral": ("Mistral", {"family": "mistral", "window": 9, "theta": 1e6}),
    "mistral-all": ("Mistral", {"family": "mistral", "window": None}),
    "mistral-wide-head": ("Mistral", {"family": "mistral", "window": None, "head": 32}),
    "qwen2": ("Qwen2", {"family": "qwen2", "theta": 1e6}),
    "qwen2-tied": ("Qwen2", {"family": "qwen2", "tied": True}),
    "qwen3": ("Qwen3", {"family": "qwen3", "head": 16}),
}
NAMES = {
    "model.embed_tokens.": "embed.", "model.layers.": "blocks.", "model.norm.": "norm.", "lm_head.": "head.",
    "self_attn.": "attn.", "_proj.": ".", "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm",
}  # fmt: skip


def pair(case: str, backend: Any) -> tuple[Any, transformer.Transformer]:
    """A random model of transformers', and ours with its weights."""
    kind, fields = CASES[case]
    config = transformer.Config.model_validate({**SMALL, **fields})
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(theirs_config(kind, config)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3 if weight.ndim == 1 else 0.15)
    ours = config.build(attention=backend.build(backend.Config()))
    ours.load_state_dict(renamed(theirs, config.tied))
    return theirs, ours


def theirs_config(kind: str, config: transformer.Config) -> Any:
    rope = {"rope_type": "default", "rope_theta": config.theta}
    if config.rope.type != "none":
        rope |= {"rope_type": config.rope.type, "factor": config.rope.factor}
    if config.rope.type == "llama3":
        rope |= {"low_freq_factor": config.rope.low, "high_freq_factor": config.rope.high,
                 "original_max_position_embeddings": config.rope.original}  # fmt: skip
    given: dict[str, Any] = {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head, "intermediate_size": config.ffn,
        "vocab_size": config.vocab, "max_position_embeddings": config.context, "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied, "rope_parameters": rope, "attn_implementation": "eager",
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if kind == "Mistral":
        given["sliding_window"] = config.window
    return getattr(transformers, f"{kind}Config")(**given)


def renamed(theirs: Any, tied: bool) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if not (tied and name == "head.weight"):
            found[name] = tensor
    return found


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("backend", "most"), [(eager, 2e-6), (sdpa, 1e-5)], ids=["eager", "sdpa"])
def test_logits_are_theirs(case: str, backend: Any, most: float) -> None:
    theirs, ours = pair(case, backend)
    ids = torch.randint(SMALL["vocab"], (40,), generator=torch.Generator().manual_seed(1))
    wanted = theirs(ids[None]).logits[0]
    got = ours.logits(ours(ours.embed(ids), torch.tensor([40])))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=most * wanted.abs().max().clamp(min=1).item())


@torch.no_grad()
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3"])
def test_bfloat16_is_theirs_bit_for_bit(case: str) -> None:
    """The order of casts in norms, rotation and softmax shows in the last bits only here."""
    theirs, ours = pair(case, eager)
    theirs, ours = theirs.bfloat16(), ours.bfloat16()
    inner = theirs.model.rotary_emb  # a cast of their module spoils its frequencies; loading in bfloat16 does not
    inner.inv_freq = 1.0 / ours.config.theta ** (torch.arange(0, ours.config.head, 2).float() / ours.config.head)
    ids = torch.randint(SMALL["vocab"], (40,), generator=torch.Generator().manual_seed(1))
    wanted = theirs(ids[None]).logits[0].float()
    assert torch.equal(ours.logits(ours(ours.embed(ids), torch.tensor([40]))), wanted)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_greedy_words_are_theirs(case: str) -> None:
    theirs, ours = pair(case, sdpa)
    ids = torch.randint(SMALL["vocab"], (20,), generator=torch.Generator().manual_seed(2))
    wanted = theirs.generate(ids[None], max_new_tokens=32, do_sample=False)[0, 20:].tolist()
    cache = ours.cache(1, 64)
    got: list[int] = []
    while len(got) < 32:
        hidden = ours(ours.embed(ids), torch.tensor([len(ids)]), cache)
        got.append(int(ours.logits(hidden[-1:]).argmax()))
        ids = torch.tensor(got[-1:])
    assert got == wanted


@torch.no_grad()
def test_ragged_row_is_their_padded_batch() -> None:
    theirs, ours = pair("qwen2", sdpa)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(SMALL["vocab"], (n,), generator=generator) for n in (5, 17, 1, 11)]
    got = ours.logits(ours(ours.embed(torch.cat(prompts)), torch.tensor([5, 17, 1, 11]))).split([5, 17, 1, 11])
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    mask = torch.arange(17)[None] < torch.tensor([5, 17, 1, 11])[:, None]
    wanted = theirs(ids, attention_mask=mask.long()).logits
    for row, mine in enumerate(got):
        torch.testing.assert_close(mine, wanted[row, : len(mine)], rtol=0, atol=1e-5)


def test_loss_and_gradients_are_theirs() -> None:
    theirs, ours = pair("qwen2-tied", sdpa)
    ids = torch.randint(SMALL["vocab"], (24,), generator=torch.Generator().manual_seed(4))
    theirs(ids[None], labels=ids[None]).loss.backward()
    logits = ours.logits(ours(ours.embed(ids), torch.tensor([24])))
    torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    pairs = {
        "embed.weight": "model.embed_tokens.weight",
        "blocks.0.attn.q.bias": "model.layers.0.self_attn.q_proj.bias",
        "blocks.2.mlp.down.weight": "model.layers.2.mlp.down_proj.weight",
    }
    for mine, yours in pairs.items():
        torch.testing.assert_close(ours.get_parameter(mine).grad, wanted[yours], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 64), (700, 1024), (300, 16, 64), (2, 300_000)], ids=str)
def test_a_norm_of_any_length_rounds_as_theirs(shape: tuple[int, ...]) -> None:
    """A long row goes through in pieces on a CPU, which must not be seen."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    mine, yours = (kind(shape[-1], eps=1e-5).to(torch.bfloat16) for kind in (RMSNorm, LlamaRMSNorm))
    for norm in (mine, yours):
        norm.weight.copy_(torch.linspace(0.5, 2, shape[-1]))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert torch.equal(mine(x), yours(x))
