"""Train the tokenizer of `tiny`: the words of the drawn world, and bytes for everything else.

    python examples/train_tiny_tokenizer.py presets/tiny/tokenizer.json

The model is byte-level BPE without merges: a word in the vocabulary is one token, any other text falls back to its
bytes, so every Unicode text survives the round trip. Numbers are read digit by digit.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlmkit.parts.datasets.questions import ASK
from vlmkit.parts.datasets.scenes import scene
from vlmkit.parts.datasets.wordings import WORDS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
SCENES = 60  # of each skill; only their words are looked at
LONGEST = 470  # ids


def sentences() -> list[str]:
    """Questions and answers, as the chat format lays them out."""
    asked = [q for skill in ASK for seed in range(SCENES) for q in scene(seed, skill, 8).questions]
    said = [f"user\n{q.text}" for q in asked] + [f"assistant\n{q.answer}" for q in asked]
    return [*said, *(f"assistant\n{word}" for word in WORDS)]


def main(path: str) -> None:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pieces = Counter(piece for text in sentences() for piece, _ in split.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [piece for piece, _ in pieces.most_common() if re.search(r"[A-Za-z]{2}|Ġa$", piece)]
    kept = sorted(words[: LONGEST - len(alphabet) - len(SPECIAL)])
    vocab = {piece: i for i, piece in enumerate([*alphabet, *kept])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.save(path)
    print(f"{len(words)} words seen, {len(kept)} kept; {tokenizer.get_vocab_size()} ids")
    print("left out:", words[len(kept):])


if __name__ == "__main__":
    main(sys.argv[1])
