"""The loss: the mean over what is learned, shifted by one, never across two sequences."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vlmkit
from vlmkit.errors import DataError
from vlmkit.parts.attention import eager, sdpa
from vlmkit.parts.decoders import transformer
from vlmkit.train.loss import loss, targets
from vlmkit.types import Batch

NOTHING = torch.empty(0, dtype=torch.int64)


def batch(ids: list[list[int]], labels: list[list[int]] | None) -> Batch:
    flat = None if labels is None else torch.tensor([*chain(*labels)])
    return Batch(torch.tensor([*chain(*ids)]), torch.tensor([len(row) for row in ids]), NOTHING, [], flat)


class Reader(nn.Module):
    """A decoder without eyes, around a transformer of ours."""

    def __init__(self, config: Any, backend: Any) -> None:
        super().__init__()
        self.decoder = config.build(attention=backend.build(backend.Config()))

    def forward(self, given: Batch) -> Tensor:
        return self.decoder(self.decoder.embed(given.ids), given.lens)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)


class Fixed(nn.Module):
    """Hidden states are the logits."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.decoder = SimpleNamespace(vocab=self.rows.shape[1], blocks=(), parameters=lambda: ())

    def forward(self, given: Batch) -> Tensor:
        return self.rows

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_by_hand() -> None:
    """Two sequences over two words. Learned: the 2nd token of the first, the 2nd and 3rd of the second.

    Probabilities of the right words are 1/2, 3/4 and 1/4, so the loss is (ln 2 + ln 4/3 + ln 4) / 3 = ln(32/3) / 3.
    """
    three = torch.tensor(3.0).log().item()
    rows = [[0.0, 0.0], [99.0, -99.0], [0.0, three], [three, 0.0], [-99.0, 99.0]]
    given = batch([[0, 1], [0, 1, 1]], [[-100, 1], [-100, 1, 1]])
    assert vlmkit.loss(Fixed(rows), given).item() == pytest.approx((torch.tensor(32 / 3).log() / 3).item(), rel=1e-6)


def test_a_last_token_predicts_nothing() -> None:
    """The first token of the next sequence may be learned, but nobody is asked for it."""
    at, wanted = targets(batch([[5, 6], [7, 8, 9], [4]], [[5, 6], [7, -100, 9], [4]]))
    assert at.tolist() == [0, 3]
    assert wanted.tolist() == [6, 9]


@pytest.mark.parametrize("labels", [None, [[-100, -100]], [[3, -100]]])
def test_nothing_to_learn(labels: list[list[int]] | None) -> None:
    with pytest.raises(DataError):
        vlmkit.loss(Fixed([[0.0], [0.0]]), batch([[3, 4]], labels))


@pytest.mark.parity
@pytest.mark.parametrize("backend", [eager, sdpa])
def test_is_that_of_transformers(backend: Any) -> None:
    """A small Llama with the same weights: value and gradients, for a padded batch of theirs and a row of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False))  # fmt: skip
    ours = Reader(transformer.Config.model_validate({**transformer.EXAMPLE, "vocab": 50}), backend)
    ours.decoder.load_state_dict({_ours(n): t for n, t in theirs.state_dict().items()}, strict=True)

    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(50, (n,), generator=draw).tolist() for n in (5, 9, 1, 7)]
    labels = [[id if i % 3 else -100 for i, id in enumerate(row)] for row in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    padded = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
    wanted = theirs(input_ids=ids, attention_mask=mask, labels=padded).loss
    found = vlmkit.loss(ours, batch(rows, labels))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    wanted.backward()
    found.backward()
    grads = {_ours(n): p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.decoder.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-4, atol=1e-6, msg=name)


def _ours(name: str) -> str:
    pairs = {"model.embed_tokens": "embed", "lm_head": "head", "model.norm": "norm", "model.layers": "blocks",
             "self_attn.": "attn.", "_proj": "", "input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    for theirs, ours in pairs.items():
        name = name.replace(theirs, ours)
    return name


def reader(vocab: int) -> Reader:
    torch.manual_seed(0)
    said = {"width": 32, "layers": 1, "heads": 2, "ffn": 48, "vocab": vocab, "context": 8192}
    return Reader(transformer.Config.model_validate(said), sdpa)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_change_neither_value_nor_gradient(chunk: int) -> None:
    model = reader(50)
    ids = torch.randint(50, (90,), generator=torch.Generator().manual_seed(1))
    given = batch([ids[:40].tolist(), ids[40:].tolist()], [ids[:40].tolist(), ids[40:].tolist()])
    found = []
    for size in (None, chunk):
        value = loss(model, given, chunk=size)
        found.append((value, *torch.autograd.grad(value, list(model.parameters()))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)


def test_a_part_of_a_larger_batch() -> None:
    model, ids = reader(50), [[1, 2, 3, 4], [5, 6, 7]]
    whole = loss(model, batch(ids, ids))
    parts = [loss(model, batch([row], [row]), total=5) for row in ids]
    torch.testing.assert_close(sum(parts), whole)


PEAK = """
import re, sys, torch
sys.path.insert(0, sys.argv[1])
from test_loss import batch, reader
from vlmkit.train.loss import loss
def peak():
    # of this process; ru_maxrss knows its parent's, too
    return int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024
model, ids = reader(64000), list(range(1024))
loss(model, batch([ids], [ids]), chunk=16).backward()  # imports, and what the model itself holds, count for neither
for chunk in (32, 1024):
    before = peak()
    loss(model, batch([ids], [ids]), chunk=chunk).backward()
    print(peak() - before)
"""


def test_no_more_than_a_chunk_of_logits_is_held() -> None:
    """1024 rows of 64000 logits are 250 MiB, and their gradients as many; 32 rows are 8."""
    plain = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed leaves the process
    done = subprocess.run([sys.executable, "-c", PEAK, str(Path(__file__).parent)], capture_output=True, text=True,
                          timeout=120, check=True, env=os.environ | plain)  # fmt: skip
    some, whole = map(int, done.stdout.split())
    assert some < 150
    assert whole > 300
