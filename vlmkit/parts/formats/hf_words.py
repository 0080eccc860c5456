"""What an export for transformers says about text: tokenizer, special tokens, chat template, where an answer ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tokenizers

from vlmkit.errors import PresetError

from .files import JSON, write_json

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset

ENDS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<eos>")  # where a chat names none
PADS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>")
ROUND = 64  # an embedding that grows becomes a multiple of this many rows


class Words(NamedTuple):
    """Ids and strings that the other files repeat.   rows: of the embedding, with room for every token"""

    marks: dict[str, str]  # kind -> what stands for a visual
    bos: str | None
    eos: str | None
    pad: str | None
    stops: tuple[int, ...]
    ids: dict[str, int]  # of added tokens
    rows: int
    notes: tuple[str, ...]

    def mark(self, kind: str) -> int:
        return self.ids[self.marks[kind]]

    @property
    def said(self) -> JSON:
        """As a configuration names them."""
        named = {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return {key: self.ids[token] for key, token in named.items() if token is not None}


def dress(folder: Path, preset: Preset, clips: bool, processor: str) -> Words:
    """Write tokenizer_config.json, chat_template.jinja and generation_config.json beside the tokenizer.json there.

    clips   whether the class knows a placeholder for clips
    """
    file = folder / "tokenizer.json"
    raw = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
    marks, notes = _marks(raw, preset, clips)
    if notes:
        file.write_text(raw.to_str(), "utf-8")
    words = _words(raw, preset, marks, notes)
    template = getattr(preset.chat.build(), "jinja", None)
    if template is None:
        raise PresetError(f"{preset.chat.use} has no home in llava-hf, which takes a chat template", where="chat",
                          hint="the nearest that has one: chat={use: turns, style: ...}")
    source = template(marks["image"], marks["video"])
    (folder / "chat_template.jinja").write_text(source, "utf-8")
    if words.bos and "bos_token" not in source:
        words = words._replace(notes=(*words.notes, f"chat: the tokenizer puts {words.bos} before a prompt; a chat in "
                                                    "vLLM does when it is asked with add_special_tokens"))
    tokens = {"bos_token": words.bos, "eos_token": words.eos, "pad_token": words.pad, "unk_token": _unknown(raw, words)}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": processor, "padding_side": "left",
        "model_max_length": preset.decoder.context, "clean_up_tokenization_spaces": False,  # type: ignore[attr-defined]
        **{key: token for key, token in tokens.items() if token}})
    stops = {"eos_token_id": list(words.stops)} if len(words.stops) > 1 else {}
    write_json(folder / "generation_config.json", words.said | stops)
    return words


def _marks(raw: tokenizers.Tokenizer, preset: Preset, clips: bool) -> tuple[dict[str, str], list[str]]:
    """kind -> a token of its own that stands for a visual; one that is missing is added to the tokenizer."""
    given = preset.tokenizer
    marks = {"image": given.image if given else "<image>", "video": given.video if given else "<video>"}
    added = {token.content for token in raw.get_added_tokens_decoder().values()}
    taken = {*preset.chat.build().stops, *_before(raw), *ENDS, *PADS}
    notes = []
    for kind in ("image", "video") if clips else ("image",):
        other = marks["video" if kind == "image" else "image"]
        mark = marks[kind]
        if mark in added and mark not in taken and mark != other:
            continue
        marks[kind] = f"<{kind}>"
        raw.add_special_tokens([tokenizers.AddedToken(marks[kind], special=True, normalized=False)])
        notes.append(f"tokenizer: {marks[kind]} is new, id {raw.token_to_id(marks[kind])}; {mark!r} is no token that "
                     f"stands for a {kind} only")
    return marks, notes


def _words(raw: tokenizers.Tokenizer, preset: Preset, marks: dict[str, str], notes: list[str]) -> Words:
    ids = {token.content: i for i, token in raw.get_added_tokens_decoder().items()}
    chat = preset.chat.build()
    stops = [stop for stop in chat.stops if stop in ids]
    if strings := [stop for stop in chat.stops if stop not in ids]:
        notes = [*notes, f"an answer also ends before {' or '.join(map(repr, strings))}, which is no token: "
                         "give transformers stop_strings, vLLM stop"]
    bos = next(iter(_before(raw)), getattr(preset.chat, "bos", ""))
    eos = next((t for t in (*stops, getattr(preset.chat, "eos", ""), *ENDS) if t in ids), None)
    vocab = preset.decoder.vocab  # type: ignore[attr-defined]
    size = max(raw.get_vocab(with_added_tokens=True).values()) + 1
    rows = vocab if size <= vocab else -(-size // ROUND) * ROUND
    if rows > vocab:
        notes = [*notes, f"decoder: {rows - vocab} rows are added to the embedding and the head for new tokens; each "
                         "is the mean of the others, so it is never the likeliest"]
    pad = next((t for t in (*PADS, eos) if t in ids), None)
    ends = tuple(ids[stop] for stop in stops)
    return Words(marks, bos if bos in ids else None, eos, pad, ends, ids, rows, tuple(notes))


def _before(raw: tokenizers.Tokenizer) -> list[str]:
    """The tokens a tokenizer puts before every text."""
    read = raw.encode("a", add_special_tokens=True)
    mask = [*read.special_tokens_mask, 0]
    return list(read.tokens[: mask.index(0)])


def _unknown(raw: tokenizers.Tokenizer, words: Words) -> str | None:
    token = getattr(raw.model, "unk_token", None)
    return token if token in words.ids else None
