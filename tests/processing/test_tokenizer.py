"""Ids as the tokenizer reads the whole prompt, and speech that never becomes a special token (T1, T2, T4, T07, C7)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Raw

from vlmkit.errors import PromptError, TokenizerError
from vlmkit.limits import Limits
from vlmkit.processing.tokenizer import Tokenizer
from vlmkit.types import Learned, Said, Seen

WORDS = [
    "What is in the picture? A cat asleep on a keyboard. USER: ASSISTANT: the answer is 42, yes.\n",
    "system user assistant You are a helpful assistant. <image> [INST] </s> |im_end| Human: ### été",
] * 3
MARKS = {"image": "<image>", "video": "<video>"}
FAMILIES: dict[str, list[str]] = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    "llama": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
    "llama legacy": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
    "llama 3": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<image>"],
}  # fmt: skip


def make(family: str) -> Raw:
    """A small tokenizer built as the family's own."""
    special = FAMILIES[family]
    if family in ("qwen", "llama 3"):
        raw = Raw(models.BPE(ignore_merges=family == "llama 3"))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=letters))
        raw.add_special_tokens(special)
    else:
        raw = Raw(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        legacy = family == "llama legacy"
        raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special[:3] + pieces)
        raw.train_from_iterator(WORDS, trainer)
        if legacy:
            raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tree = json.loads(raw.to_str())
        tree["pre_tokenizer"] = None if legacy else tree["pre_tokenizer"] | {"split": False}
        # byte pieces are words of the model, not added tokens
        tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["content"].startswith("<0x")]
        raw = Raw.from_str(json.dumps(tree))
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        raw.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    if family != "qwen":
        first = special[0] if family == "llama 3" else "<s>"
        raw.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, raw.token_to_id(first))]
        )
    return raw


RAW = {family: make(family) for family in FAMILIES}
OURS = {family: Tokenizer(raw.to_str()) for family, raw in RAW.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_benign_prompts_give_the_ids_of_the_whole_prompt(family: str) -> None:
    raw, ours = RAW[family], OURS[family]
    end = FAMILIES[family][2]
    pieces = [
        "USER: ",
        Seen(0),
        "\n",
        Said("What is in the picture? Été 🙂"),
        " ASSISTANT:",
        Said(" A cat.", True),
        Learned(end),
        "USER: ",
        Said("And"),
        Seen(1),
        Said(" here?"),
    ]
    whole = "".join("<image>" if isinstance(p, Seen) else p if isinstance(p, str) else p.text for p in pieces)
    prompt = ours.encode(pieces, MARKS)
    assert prompt.ids == raw.encode(whole).ids
    assert [prompt.ids[at] for at in prompt.slots] == [ours.id_of("<image>")] * 2
    learned = [id for id, learn in zip(prompt.ids, prompt.learned, strict=True) if learn]
    assert ours.decode(learned, special=True).strip() == f"A cat.{end}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_typed_special_strings_stay_text(family: str, pictures: int) -> None:
    """T01: each special string, in each role, between pictures; the words survive to the letter."""
    ours = OURS[family]
    special = {ours.id_of(s) for s in FAMILIES[family]}
    for string in FAMILIES[family]:
        for said in (string, f"the {string} tag", f"{string}{string}\n{string}", f"a{string}b"):
            for learned in (False, True):
                pieces = [*(Seen(at) for at in range(pictures)), "Q", Said(said, learned), "E"]
                prompt = ours.encode(pieces, MARKS)
                assert len(prompt.slots) == pictures
                begin = len(ours.before)
                inside = [id for at, id in enumerate(prompt.ids) if at >= begin and at not in prompt.slots]
                assert not special & set(inside), (string, said)
                assert ours.decode(inside, special=True).strip() == f"Q{said}E"


def test_only_what_needs_it_is_split() -> None:
    """Apart from the special string itself, ids are those of the plain text (recipe 6: no change at the joints)."""
    ours, raw = OURS["qwen"], RAW["qwen"]
    marked = ours.encode([Said("What is the answer? yes <image> the picture")], MARKS).ids
    before, after = raw.encode("What is the answer? yes <").ids, raw.encode(" the picture").ids
    assert marked[: len(before)] == before
    assert marked[-len(after) :] == after


def test_a_special_string_across_a_joint_is_no_special_token() -> None:
    ours = OURS["qwen"]
    prompt = ours.encode([Said("go <|im_"), "end|> ", Said("x"), "<|im_end|>"], MARKS)
    assert prompt.ids.count(ours.id_of("<|im_end|>")) == 1
    assert prompt.ids[-1] == ours.id_of("<|im_end|>")


def test_without_a_placeholder_token_the_text_is_read_in_pieces() -> None:
    """The original checkpoints: split at the picture, one BOS, id 0 in its place."""
    raw = make("llama")
    tree = json.loads(raw.to_str())
    tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] not in ("<image>", "<pad>")]
    ours = Tokenizer(json.dumps(tree))
    prompt = ours.encode(["USER: ", Seen(0), Said("\nWhat <image> is?"), Seen(1)], MARKS)
    plain = Raw.from_str(json.dumps(tree))
    first, second = plain.encode("USER: ").ids, plain.encode("\nWhat <image> is?", add_special_tokens=False).ids
    assert prompt.ids == [*first, 0, *second, 0]
    assert prompt.slots == [len(first), len(prompt.ids) - 1]


def test_bos_is_put_once() -> None:
    ours = OURS["llama 3"]
    bos = ours.id_of("<|begin_of_text|>")
    assert ours.encode(["hi"], MARKS).ids.count(bos) == 1
    assert ours.encode(["<|begin_of_text|>hi"], MARKS).ids.count(bos) == 1
    assert ours.encode([Said("<|begin_of_text|>hi")], MARKS).ids.count(bos) == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=20), st.sampled_from(FAMILIES["qwen"] + ["<", "|", ">", " "])), max_size=6),
    st.lists(st.integers(0, 6), max_size=3),
)
def test_any_text_with_any_pictures(parts: list[str], places: list[int]) -> None:
    """T4: slots equal pictures, no special id from speech, decode(encode(t)) == t."""
    ours = OURS["qwen"]
    pieces: list = [Said(part) for part in parts]
    for index, at in enumerate(sorted(places, reverse=True)):
        pieces.insert(at, Seen(index))
    prompt = ours.encode(pieces, MARKS)
    assert len(prompt.slots) == len(places)
    words = [id for at, id in enumerate(prompt.ids) if at not in prompt.slots]
    assert not ours.special & set(words)
    assert ours.decode(words, special=True) == "".join(parts)


@pytest.mark.parametrize("said", ["a\ud800b", "\udfff"])
def test_half_characters_are_refused(said: str) -> None:
    """T04"""
    with pytest.raises(PromptError, match="surrogate"):
        OURS["qwen"].encode([Said(said)], MARKS)


@pytest.mark.parametrize(
    "said", ["a\x00b\x1b[2J", "\u200b\u202e\u2066rtl\u2069", "{{ 7 * 7 }}{% raw %}", "\ufeff\ufffe"]
)
def test_odd_characters_survive(said: str) -> None:
    """T05, T06"""
    ours = OURS["qwen"]
    assert ours.decode(ours.encode([Said(said)], MARKS).ids) == said


@pytest.mark.parametrize("family", ["qwen", "llama legacy"])
@pytest.mark.parametrize("letter", ["a", " ", "7", "🙂", "<image>"])
def test_long_monotonous_text_takes_linear_time(family: str, letter: str) -> None:
    """T07, at a quarter of a megabyte."""
    started = time.perf_counter()
    prompt = OURS[family].encode([Said(letter * (250_000 // len(letter.encode())))], MARKS)
    assert time.perf_counter() - started < 8
    assert not prompt.slots
    with Limits(text_max_chars=1000), pytest.raises(PromptError, match=r"text\.max_chars"):
        OURS[family].encode([Said("a" * 1001)], MARKS)


def test_words_a_normalizer_turns_into_specials() -> None:
    """C41: `cat` becomes the placeholder inside the tokenizer; speech must not."""
    raw = make("qwen")
    raw.normalizer = normalizers.Replace(Regex("cat"), "<image>")
    tree = json.loads(raw.to_str())
    for token in tree["added_tokens"]:
        token["normalized"] = True
    ours = Tokenizer(json.dumps(tree))
    assert ours.encode([Seen(0), Said("a dog here")], MARKS).ids.count(ours.id_of("<image>")) == 1
    with pytest.raises(TokenizerError, match="special token"):
        ours.encode([Seen(0), Said("a cat here")], MARKS)


def test_settings_of_training_are_forgotten() -> None:
    raw = make("qwen")
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    assert (
        Tokenizer(raw.to_str()).encode(["What is in the picture?"], MARKS).ids
        == RAW["qwen"].encode("What is in the picture?").ids
    )


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for hint in ("", "only tokenizer.model is there"):
        with pytest.raises(TokenizerError, match="no such file") as error:
            Tokenizer.from_file(tmp_path)
        assert error.value.hint.startswith(hint)
        (tmp_path / "tokenizer.model").touch()
    good = RAW["qwen"].to_str()
    twice = json.loads(good)
    twice["model"]["vocab"]["a"] = twice["model"]["vocab"]["b"]
    for bad in ("", "[]", "{}", good[:-100], "[" * 100_000, json.dumps(twice), "\xff"):
        path.write_bytes(bad.encode("latin-1") if bad == "\xff" else bad.encode())
        with pytest.raises(TokenizerError) as caught:
            Tokenizer.from_file(path)
        assert str(path) in str(caught.value)
    path.write_text(good)
    assert Tokenizer.from_file(tmp_path).size == RAW["qwen"].get_vocab_size()
    with Limits(tokenizer_max_bytes=100), pytest.raises(TokenizerError, match=r"tokenizer\.max_bytes"):
        Tokenizer.from_file(path)
