"""Answers beside transformers' own `generate`: same weights, same prompts, same words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlmkit.generate import generate
from vlmkit.parts.attention import sdpa
from vlmkit.parts.decoders import transformer
from vlmkit.types import Batch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
NAMES = {
    "model.embed_tokens.": "embed.", "model.layers.": "blocks.", "model.norm.": "norm.", "lm_head.": "head.",
    "self_attn.": "attn.", "_proj.": ".", "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm",
}  # fmt: skip
LENS = (5, 23, 1, 14)


class Numbers:
    """A tokenizer whose words are numbers, and the processor that goes with it."""

    size, stop_ids, stop_strings = 199, (2,), ()

    def __init__(self) -> None:
        self.tokenizer = self

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{id} " for id in ids)

    def __call__(self, conversations: Any) -> Batch:
        ids = torch.tensor([int(word) for word in conversations[0][0]["content"][0]["text"].split()])
        return Batch(ids, torch.tensor([len(ids)]), torch.empty(0, dtype=torch.int64), [])


class Reading(torch.nn.Module):
    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Batch, cache: Any = None) -> torch.Tensor:
        return self.decoder(self.decoder.embed(batch.ids), batch.lens, cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.logits(hidden)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Reading]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=199, max_position_embeddings=128, eos_token_id=2, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.15)
        theirs.lm_head.weight[2] *= 1.5  # ends come often enough to be seen
    fields = {"width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 199, "context": 128}
    decoder = transformer.Config.model_validate(fields).build(attention=sdpa.Sdpa())
    weights = {}
    for name, weight in theirs.state_dict().items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        weights[name] = weight
    decoder.load_state_dict(weights)
    return theirs, Reading(decoder)


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 199, (n,), generator=generator) for n in LENS]


def said(ids: list[int]) -> list[int]:
    """Up to and with the end."""
    return ids[: ids.index(2) + 1] if 2 in ids else ids


def asked(ids: torch.Tensor) -> str:
    return " ".join(str(id) for id in ids.tolist())


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_a_greedy_batch(pair: tuple[Any, Reading], penalty: float) -> None:
    theirs, ours = pair
    left = torch.nn.utils.rnn.pad_sequence([p.flip(0) for p in prompts()], batch_first=True).flip(1)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in prompts()], batch_first=True).flip(1)
    if penalty == 1:
        wanted = theirs.generate(left, attention_mask=mask, max_new_tokens=40, do_sample=False)[:, left.shape[1] :]
    else:  # one by one: their penalty counts the padding as said
        how = {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": penalty}
        wanted = [theirs.generate(p[None], **how)[0, len(p) :] for p in prompts()]
    chats = [asked(p) for p in prompts()]
    got = generate(ours, Numbers(), chats, max_new_tokens=40, repetition_penalty=penalty, details=True)
    for mine, yours in zip(got, wanted, strict=True):
        assert mine.ids == said(yours.tolist())
        assert mine.finish == ("stop" if mine.ids[-1] == 2 else "length")
        assert mine.text.split() == [str(id) for id in mine.ids if id != 2]


@pytest.mark.parametrize("seed", range(6))
def test_chance_falls_the_same_way(pair: tuple[Any, Reading], seed: int) -> None:
    theirs, ours = pair
    prompt = prompts()[1]
    torch.manual_seed(seed)
    how = {"temperature": 1.2, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.1}
    wanted = theirs.generate(prompt[None], max_new_tokens=30, do_sample=True, **how)[0, len(prompt) :]
    got = generate(ours, Numbers(), asked(prompt), max_new_tokens=30, seed=seed, details=True, **how)
    assert got.ids == said(wanted.tolist())


def test_log_probabilities_are_theirs(pair: tuple[Any, Reading]) -> None:
    theirs, ours = pair
    prompt = prompts()[3]
    got = generate(ours, Numbers(), asked(prompt), max_new_tokens=20, details=True, ignore_eos=True)
    with torch.no_grad():
        logits = theirs(torch.cat((prompt, torch.tensor(got.ids)))[None]).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(got.ids)[:, None])[:, 0]
    assert got.logprobs == pytest.approx(wanted.tolist(), abs=1e-5)
