"""Language models of transformers as decoders: their own logits on rows without padding, with and without a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from vlmkit_transformers import decoder

import vlmkit
from vlmkit import registry
from vlmkit.checkpoint.quantize import quantize
from vlmkit.errors import ContextLengthError, PresetError, ShapeError, VlmkitError
from vlmkit.view.attention import looks

BASE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
       "num_key_value_heads": 4, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
       "num_experts_per_tok": 2, "first_k_dense_replace": 1}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "olmo2": {},  # norms after, not before
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # learned positions, tied, other names
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # positions with an offset
    "gpt_neox": {},  # attention beside the MLP, part of a head turned
    "mistral": {"sliding_window": 5, "head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 5},  # soft caps, windows by turns, scaled
    "gpt_oss": {"head_dim": 8, "sliding_window": 5, "num_local_experts": 4},  # sinks, experts
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "embedding_multiplier": 3.0},
    "cohere": {},  # logits scaled, tied
    "deepseek_v3": MLA,  # keys wider than values
    "stablelm": {},  # keeps arguments to itself
    "qwen3": {"head_dim": 8, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                                  "original_max_position_embeddings": 16}},
}  # fmt: skip
COUNTS = (11, 1, 7)


def config(kind: str, **fields: Any) -> decoder.Config:
    return decoder.Config(config={"model_type": kind, **BASE, **KINDS.get(kind, {}), **fields})


def backend(name: str = "sdpa") -> Any:
    entry = registry.find("attention", name)
    return entry.build(entry.config())


def drawn(theirs: Any, seed: int = 0) -> Any:
    """A model of transformers with every weight drawn anew, so that a bias or a norm that is left out shows."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            values = torch.randn(weight.shape, generator=noise) * 0.2
            weight.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)
    return theirs.eval()


def fill(ours: decoder.Decoder, theirs: Any) -> decoder.Decoder:
    """Their weights in ours: what is below the head, then the head."""
    below = decoder.below(theirs)
    weights = {f"head.{name}": tensor for name, tensor in theirs.state_dict().items()}
    weights |= {f"model.{name}": tensor for name, tensor in getattr(theirs, below).state_dict().items()}
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    return ours.eval()


def pair(kind: str, attention: str = "sdpa", **fields: Any) -> tuple[decoder.Decoder, Any]:
    theirs = drawn(config(kind, **fields).make("AutoModelForCausalLM", attn_implementation="eager"))
    return fill(decoder.build(config(kind, **fields), attention=backend(attention)), theirs), theirs


def talk(count: int = 3) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(3)
    return [torch.randint(3, 64, (n,), generator=noise) for n in COUNTS[:count]]


def alone(theirs: Any, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [theirs(input_ids=ids[None], use_cache=False).logits[0] for ids in sequences]


def together(ours: decoder.Decoder, chunks: list[torch.Tensor], cache: Any = None) -> list[torch.Tensor]:
    lens = torch.tensor([len(ids) for ids in chunks])
    with torch.no_grad():
        return list(ours.logits(ours(ours.embed(torch.cat(chunks)), lens, cache)).split(lens.tolist()))


def close(given: Any, expected: Any) -> None:
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_rows_without_padding(kind: str) -> None:
    ours, theirs = pair(kind)
    sequences = talk()
    expected = alone(theirs, sequences)
    close(together(ours, sequences), expected)
    assert expected[0].std() > 0.01
    assert (ours.width, ours.vocab, ours.context, len(ours.blocks)) == (32, 64, 64, 2)


@pytest.mark.parity
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_single_tokens_in_one_call(kind: str, attention: str) -> None:
    ours, theirs = pair(kind, attention)
    long, one, short = talk()
    rest = long[:0]
    cache = ours.cache(4, 16)  # row 2 is nobody's
    first = together(ours, [long[:8], rest, rest, short[:2]], cache)
    second = together(ours, [long[8:9], one, rest, short[2:6]], cache)
    third = together(ours, [long[9:], rest, rest, short[6:]], cache)
    assert cache[0].lens.tolist() == [11, 1, 0, 7]
    expected = alone(theirs, [long, one, short])
    close([torch.cat([step[0] for step in (first, second, third)]), second[1],
           torch.cat([step[3] for step in (first, second, third)])], expected)  # fmt: skip
    assert all(not layer.k[2].any() and layer.k[0].any() for layer in cache)


@pytest.mark.parity
def test_of_heads_that_are_shared_only_those_are_kept() -> None:
    ours, _ = pair("deepseek_v3")
    layer = ours.cache(3, 5)[0]
    assert (tuple(layer.k.shape), tuple(layer.v.shape)) == ((3, 5, 4, 12), (3, 5, 4, 6))
    ours, _ = pair("llama")
    assert tuple(ours.cache(3, 5)[1].k.shape) == (3, 5, 2, 8)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "qwen3", "opt"])
def test_on_meta_first_then_with_weights(kind: str) -> None:
    ours, _ = pair(kind)
    with torch.device("meta"):
        other = decoder.build(config(kind), attention=backend())
    other.load_state_dict(ours.state_dict(), assign=True)
    other.materialize()
    assert torch.equal(torch.cat(together(other.eval(), talk())), torch.cat(together(ours, talk())))
    tensors = list(other.state_dict().values())
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)  # a tied head stands there once


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
def test_every_weight_learns(kind: str) -> None:
    ours, _ = pair(kind)
    sequences = talk()
    hidden = ours(ours.embed(torch.cat(sequences)), torch.tensor(COUNTS))
    ours.logits(hidden).logsumexp(-1).sum().backward()
    for name, weight in ours.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_blocks_can_be_computed_again() -> None:
    ours, _ = pair("llama")
    x, lens = ours.embed(torch.cat(talk())).detach(), torch.tensor(COUNTS)
    ours(x, lens).sum().backward()
    expected = {name: weight.grad.clone() for name, weight in ours.model.layers.named_parameters()}
    ours.zero_grad()
    for block in ours.blocks:
        plain = block.forward
        block.forward = lambda *given, plain=plain, **named: torch.utils.checkpoint.checkpoint(
            plain, *given, use_reentrant=False, **named)
    ours(x, lens).sum().backward()
    close({name: weight.grad for name, weight in ours.model.layers.named_parameters()}, expected)


def test_a_change_of_dtype_leaves_positions_alone() -> None:
    ours, _ = pair("qwen3")
    before = ours.model.rotary_emb.inv_freq.clone()
    expected = torch.cat(together(ours, talk()))
    ours.to(torch.bfloat16)
    assert torch.equal(ours.model.rotary_emb.inv_freq, before)
    assert ours.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert (torch.cat(together(ours, talk())) - expected).abs().max() < 0.1 * expected.abs().max()


def test_tables_that_stretch_end_where_they_begin_to() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4,
            "original_max_position_embeddings": 16}  # fmt: skip
    ours, theirs = pair("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    assert ours.context == 16
    close(together(ours, talk()), alone(theirs, talk()))
    with pytest.raises(ContextLengthError, match="17 tokens does not fit into 16"):
        together(ours, [torch.arange(3, 20)])
    with pytest.raises(ShapeError, match="lens sum to 4"):
        ours(ours.embed(talk()[0]), torch.tensor([4]))


def model(words: tuple[str, ...] = (), kind: str = "gemma2") -> tuple[Any, Any]:
    """`tiny` with another decoder, and another tower when `words` say so; its tokenizer, chat and tiles."""
    _, processor = vlmkit.load("tiny")
    said = {"model_type": kind, **BASE, **KINDS.get(kind, {}), "max_position_embeddings": 512,
            "vocab_size": processor.tokenizer.size}  # fmt: skip
    preset = vlmkit.compose("tiny", f"decoder={{use: transformers, config: {said}}}", *words)
    made = vlmkit.build(preset, seed=1).eval()
    return made, type(processor)(preset, processor.skeleton, processor.tokenizer)


def conversations() -> list[Any]:
    """Questions about pictures, without their answers."""
    data = vlmkit.compose("tiny", "runs/tiny").data.build()
    return [[turn for turn in data[i] if turn["role"] == "user"][:1] for i in range(3)]


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "granite"])
def test_greedy_answers_are_those_of_transformers(kind: str) -> None:
    made, processor = model(kind=kind)
    theirs = drawn(processor.preset.decoder.make("AutoModelForCausalLM", attn_implementation="eager"), seed=5)
    theirs.generation_config.eos_token_id = None
    fill(made.decoder, theirs)
    asked = conversations()
    answers = vlmkit.generate(made, processor, asked, max_new_tokens=12, details=True, ignore_eos=True)
    for one, answer in zip(asked, answers, strict=True):
        batch = processor([one])
        with torch.no_grad():
            seen = made.splice(batch.ids, batch.slots, made.encode(batch.visuals))[None]
            ids = theirs.generate(inputs_embeds=seen, attention_mask=torch.ones(seen.shape[:2]), max_new_tokens=12,
                                  do_sample=False)  # fmt: skip
        assert answer.ids == ids[0].tolist()
        assert len(set(answer.ids)) > 1


def test_saved_and_loaded_by_vlmkit(tmp_path: Path) -> None:
    made, processor = model()
    vlmkit.save(made, processor, tmp_path / "saved")
    assert '"vlmkit-transformers"' in (tmp_path / "saved" / "lock.json").read_text()
    again, reads = vlmkit.load(str(tmp_path / "saved"))
    batch = reads(conversations())
    with torch.no_grad():
        assert torch.equal(again.logits(again(batch)), made.logits(made(batch)))


def test_it_is_no_layout_to_export_to(tmp_path: Path) -> None:
    made, processor = model()
    with pytest.raises(PresetError, match="no place for a projector"):
        vlmkit.export(made, processor, tmp_path / "out", format="transformers")
    assert not [*tmp_path.iterdir()]


def test_its_matrices_can_be_kept_in_eight_bits() -> None:
    made, processor = model(kind="qwen2_moe")
    batch = processor(conversations())
    with torch.no_grad():
        whole = made.logits(made(batch))
        with pytest.warns(UserWarning, match=r"stay whole: 4 stacks of matrices, such as 0\.mlp\.experts\."):
            quantize(made, "int8")
        rough = made.logits(made(batch))
    layer = made.decoder.blocks[0]
    assert layer.self_attn.q_proj.weight.dtype == torch.int8
    assert layer.mlp.shared_expert_gate.weight.dtype == torch.float32
    assert 0 < (whole - rough).abs().max() < 0.1 * whole.abs().max()


def test_its_attention_can_be_looked_at() -> None:
    _, processor = model(kind="llama")
    watched = vlmkit.build(processor.preset, attention="eager").eval()
    found, batch = looks(watched, processor, conversations()[0], max_new_tokens=3)
    assert found[0].weights.shape == batch.slots.shape
    assert 0 < float(found[0].weights.sum()) <= 1


@pytest.mark.parametrize("kind", ["clip", "clip_vision_model", "dinov2", "vit"])  # the last two: other names on disk
def test_weights_of_folders_that_hold_one_model(kind: str, tmp_path: Path) -> None:
    seen = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16}  # fmt: skip
    if kind == "clip":
        seen = {"vision_config": seen, "text_config": {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2}}
    eyes = drawn(transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **seen)))
    eyes.save_pretrained(tmp_path / "eyes")
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1]}
    (tmp_path / "eyes" / "preprocessor_config.json").write_text(json.dumps(said))
    mouth = drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **BASE | {"vocab_size": 464, "max_position_embeddings": 512})))  # fmt: skip
    mouth.save_pretrained(tmp_path / "mouth")
    weights = [{"from": str(tmp_path / name), "format": "transformers", "into": [into]}
               for name, into in (("eyes", "tower"), ("mouth", "decoder"))]  # fmt: skip
    made, _ = vlmkit.load(vlmkit.compose(
        "tiny", f"tower={{use: transformers, file: {tmp_path / 'eyes'}, layer: -2}}",
        f"decoder={{use: transformers, file: {tmp_path / 'mouth'}}}", f"weights={weights}"))  # fmt: skip
    assert made.tower.mean == (0.5, 0.4, 0.3)
    assert len(made.tower.blocks) == 2
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        given = made.tower(pixels).tokens
        x = pixels / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
        whole = (eyes.vision_model if kind == "clip" else eyes)(pixel_values=x, output_hidden_states=True)
    close(given, whole.hidden_states[-2][:, 1:])
    close(together(made.decoder, talk()), alone(mouth, talk()))


@pytest.mark.parametrize(("kind", "fields", "told"), [
    ("mamba", {}, "a state that is no keys and values"),
    ("falcon_h1", {"num_hidden_layers": 2}, "a state that is no keys and values"),
    ("bloom", {}, "cannot run on rows of tokens"),  # counts its positions from a mask
    ("bert", {"is_decoder": False}, "not plainly causal"),
    ("llama4_text", {"attention_chunk_size": 8}, "cannot run on rows of tokens"),
    ("llama", {"hidden_size": 33}, "llama"),
    ("llama", {"num_hidden_layers": 5000}, "at most 1024"),
    ("lama", {}, "did you mean .*llama"),
])  # fmt: skip
def test_what_cannot_be_a_decoder_says_why(kind: str, fields: dict[str, Any], told: str) -> None:
    with pytest.raises((VlmkitError, ValueError), match=told), torch.device("meta"):
        decoder.build(config(kind, **fields), attention=backend())


def test_a_mistake_is_told_where_it_stands() -> None:
    with pytest.raises(PresetError, match=r"decoder\.config"):
        vlmkit.check("llava-1.5-7b", "decoder={use: transformers, config: {model_type: mamba}}")
    with pytest.raises(PresetError, match="model_type"):
        vlmkit.compose("llava-1.5-7b", "decoder={use: transformers}")


def test_the_entry_and_what_a_check_counts() -> None:
    entry = registry.find("decoder", "transformers")
    assert entry.plugin == "transformers"
    made: Any = entry.config(**entry.example)
    assert made.build(attention=backend()).vocab == 64
    report = vlmkit.check("llava-1.5-7b", "decoder={use: transformers, config: {model_type: olmo2, vocab_size: 32064}}",
                          "tower.options.depth=3")  # fmt: skip
    with torch.device("meta"):
        whole = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(vocab_size=32064))
    assert report.parameters["decoder"] == sum(weight.numel() for weight in whole.parameters())
    assert report.cache_bytes(100) == 100 * 32 * 2 * 4096 * 2
