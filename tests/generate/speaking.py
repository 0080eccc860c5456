"""A model that only reads, and its processor: bytes in, bytes out."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn

from vlmkit.parts.attention import sdpa
from vlmkit.parts.decoders import transformer
from vlmkit.processing.tokenizer import Tokenizer
from vlmkit.types import Batch

NOTHING = torch.empty(0, dtype=torch.int64)
PROMPTS = ["a", "The cat sat on the mat.", "naïve 猫", "x" * 70, "?", "two words", "1234567890" * 3, "猫 " * 9]


def alphabet() -> Tokenizer:
    """One token for each byte, and an end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([tokenizers.AddedToken("</s>", special=True)])
    return Tokenizer(raw.to_str())


class Speaker(nn.Module):
    """A decoder that only reads: a model without eyes."""

    def __init__(self, backend: Any = sdpa, **fields: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        given = {**transformer.EXAMPLE, "vocab": 320, "context": 512, **fields}
        self.decoder = transformer.Config.model_validate(given).build(attention=backend.build(backend.Config()))
        self.rows_of_logits: list[int] = []
        with torch.no_grad():
            for name, weight in self.decoder.named_parameters():  # wide enough that words differ
                weight.normal_(1.0 if "norm" in name else 0.0, 0.2)

    def forward(self, batch: Batch) -> Tensor:
        return self.decoder(self.decoder.embed(batch.ids), batch.lens)

    def logits(self, hidden: Tensor) -> Tensor:
        self.rows_of_logits.append(len(hidden))
        return self.decoder.logits(hidden)


class Reader:
    """Text to ids."""

    def __init__(self, stop_ids: tuple[int, ...] = (), stop_strings: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stop_ids, self.stop_strings = alphabet(), stop_ids, stop_strings
        self.asked: list[Any] = []

    def __call__(self, conversations: list[Any]) -> Batch:
        (messages,) = conversations
        self.asked.append(messages)
        content = messages[-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        ids = self.tokenizer.raw.encode(text, add_special_tokens=False).ids
        return Batch(torch.tensor(ids), torch.tensor([len(ids)]), NOTHING, [])


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
