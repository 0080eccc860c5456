"""Language models by themselves, saved by transformers, as the decoder of a preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import small
import transformers

import vlmkit
from vlmkit.checkpoint.paper import paper
from vlmkit.errors import CheckpointFormatError, CheckpointMismatchError, PresetError, TokenizerError, WeightsError
from vlmkit.types import Layout

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": small.VOCAB, "max_position_embeddings": 512}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {  # what a family may differ in
    "Llama": {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": False},
}
TOWER = [f"tower.options.{key}={value}" for key, value in small.CLIP.items()]


def save(folder: Path, kind: str, part: str = "ForCausalLM", words: str = "", **more: Any) -> Any:
    """A random model of transformers, saved by it, with the tokenizer beside."""
    made = getattr(transformers, kind + part)(getattr(transformers, f"{kind}Config")(**SIZE | KINDS[kind] | more))
    small.scatter(made, 3)
    made.eval().set_attn_implementation("eager")
    made.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(words or small.tokenizer(True))
    return made


def load(folder: Path, *words: str, preset: str = "llava-1.5-7b") -> Any:
    entry = f"weights=[{{from: {folder}, format: language, into: [decoder]}}]"
    return vlmkit.load(preset, *TOWER, f"tokenizer.from={folder}", entry, *words, attention="eager")


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_speaks_as_in_transformers(tmp_path: Path, kind: str) -> None:
    """Its own numbers win over those of the preset: family, sizes, base and stretch of positions, window, head."""
    their = save(tmp_path / "own", kind)
    model, process = load(tmp_path / "own")
    ids = torch.randint(9, small.WORDS, (40,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model.logits(model.decoder(model.decoder.embed(ids), torch.tensor([40])))
        wanted = their(ids[None]).logits[0]
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert process.preset.decoder.family == kind.lower()


def test_the_body_alone_is_enough_when_the_head_is_tied(tmp_path: Path) -> None:
    save(tmp_path / "body", "Qwen2", "Model")
    model, _ = load(tmp_path / "body")
    assert model.decoder.blocks[1].attn.q.bias.abs().sum() > 0
    save(tmp_path / "headless", "Llama", "Model")
    with pytest.raises(CheckpointMismatchError, match=r"1 missing in decoder:\n +decoder\.head\.weight"):
        load(tmp_path / "headless")


def test_the_rest_starts_from_its_seed(tmp_path: Path) -> None:
    save(tmp_path / "own", "Llama")
    model, _ = load(tmp_path / "own")
    drawn = vlmkit.build(vlmkit.compose("llava-1.5-7b", *TOWER, "decoder={size: null, width: 32, layers: 2, heads: 4, "
                                        f"kv_heads: 2, ffn: 48, vocab: {small.VOCAB}, context: 512}}"))
    assert model.projector.layers[0].weight.shape == drawn.projector.layers[0].weight.shape
    assert 0 < model.projector.layers[0].weight.std() < 1
    again, _ = load(tmp_path / "own")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# --- a vocabulary of its own ---


def test_the_stored_rows_win_and_the_words_must_fit_them(tmp_path: Path) -> None:
    """A bare Vicuna has 32000 rows where LLaVA-1.5's preset has 32064: its own tokenizer speaks within them."""
    save(tmp_path / "own", "Llama", vocab_size=small.WORDS)
    model, process = load(tmp_path / "own")
    assert (model.decoder.vocab, process.preset.decoder.vocab) == (small.WORDS, small.WORDS)
    save(tmp_path / "fewer", "Llama", vocab_size=small.WORDS - 5)
    with pytest.raises(TokenizerError, match=f"{small.WORDS - 1}, the decoder knows {small.WORDS - 5}") as error:
        load(tmp_path / "fewer")
    assert "tokenizer.from" in error.value.hint


def test_rows_that_were_asked_for_in_so_many_words_are_not_invented(tmp_path: Path) -> None:
    save(tmp_path / "own", "Llama")
    with pytest.raises(CheckpointMismatchError, match="of another shape or kind in decoder") as error:
        load(tmp_path / "own", f"decoder.vocab={small.VOCAB + 64}")
    assert error.value.hint == f"their vocabulary has {small.VOCAB} rows: set decoder.vocab={small.VOCAB}"


def test_a_picture_needs_no_placeholder_in_the_vocabulary(tmp_path: Path) -> None:
    tree = json.loads(small.tokenizer(True))
    tree["added_tokens"] = [one for one in tree["added_tokens"] if one["content"] != "<image>"]
    del tree["model"]["vocab"]["<image>"]
    save(tmp_path / "own", "Llama", words=json.dumps(tree))
    model, process = load(tmp_path / "own")
    batch = process(small.Talk(("<image>\nWhat is in it?",), (small.picture(48, 64, 1),)).messages)
    assert len(batch.slots) == 16
    with torch.inference_mode():
        assert model.logits(model(batch)).isfinite().all()


# --- as something else ---


def test_as_a_source_it_says_how_to_use_it(tmp_path: Path) -> None:
    save(tmp_path / "own", "Llama")
    for use in (vlmkit.load, vlmkit.compose):
        with pytest.raises(PresetError, match="is a decoder only, no vision-language model") as error:
            use(str(tmp_path / "own"))
        line = error.value.hint.partition(": ")[2]
        assert line == f"weights=[{{from: {tmp_path / 'own'}, format: language, into: [decoder]}}]"
    plan = paper("llava-1.5-7b", *TOWER, line)
    assert plan.random == ["tower", "projector"]


def test_a_folder_of_another_format_is_not_taken_for_one(tmp_path: Path) -> None:
    save(tmp_path / "own", "Llama")
    with pytest.raises(WeightsError, match="is no folder of format clip") as error:
        vlmkit.load("llava-1.5-7b", f"weights=[{{from: {tmp_path / 'own'}, format: clip, into: [tower]}}]")
    assert error.value.hint == "it looks like: language"


@pytest.mark.parametrize(("more", "said"), [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'yarn'"),
])
def test_what_the_decoder_cannot_do_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    save(tmp_path / "own", "Llama")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(CheckpointFormatError, match=said):
        load(tmp_path / "own")


def test_layouts_of_pictures_are_the_presets_own(tmp_path: Path) -> None:
    """The decoder's folder decides about the decoder, and about nothing else."""
    save(tmp_path / "own", "Qwen2")
    plan = paper("llava-next-vicuna-7b", *TOWER, f"weights=[{{from: {tmp_path / 'own'}, format: language, "
                                                 "into: [decoder]}]")
    base = vlmkit.compose("llava-next-vicuna-7b", *TOWER)
    assert (plan.preset.image, plan.preset.tower, plan.preset.chat) == (base.image, base.tower, base.chat)
    assert plan.skeleton.image.tiler.plan(50, 100, True) == Layout("image", 50, 100, 1, 2)
