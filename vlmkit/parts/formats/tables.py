"""Tensor names of transformers' vision towers, projectors and language models, beside ours."""

from __future__ import annotations

from collections.abc import Collection

from vlmkit.types import Rule


def vit(theirs: str, ours: str) -> list[Rule]:
    """CLIP and SigLIP -> timm's VisionTransformer. `theirs`, `ours`: what stands before, with its dot."""
    block, own = f"{theirs}encoder.layers.{{i}}.", f"{ours}blocks.{{i}}."
    return [
        Rule(f"{theirs}embeddings.patch_embedding.{{p}}", f"{ours}patch_embed.proj.{{p}}"),
        Rule(f"{theirs}embeddings.class_embedding", f"{ours}cls_token", "squeeze"),
        Rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}pos_embed", "squeeze"),
        Rule(f"{theirs}pre_layrnorm.{{p}}", f"{ours}norm_pre.{{p}}"),  # misspelt on disk
        Rule(f"{block}layer_norm1.{{p}}", f"{own}norm1.{{p}}"),
        Rule(tuple(f"{block}self_attn.{x}_proj.{{p}}" for x in "qkv"), f"{own}attn.qkv.{{p}}", "stack"),
        Rule(f"{block}self_attn.out_proj.{{p}}", f"{own}attn.proj.{{p}}"),
        Rule(f"{block}layer_norm2.{{p}}", f"{own}norm2.{{p}}"),
        *(Rule(f"{block}mlp.{x}.{{p}}", f"{own}mlp.{x}.{{p}}") for x in ("fc1", "fc2")),
        Rule(f"{theirs}post_layernorm.{{p}}", f"{ours}norm.{{p}}"),
        Rule(f"{theirs}head.{{p}}", None),  # SigLIP's pooling, which no LLaVA reads
        Rule(f"{theirs}embeddings.position_ids", None),
    ]


def temporal(theirs: str, ours: str) -> list[Rule]:
    """What LanguageBind's video tower has in each block beside that: attention over time."""
    block, own = f"{theirs}encoder.layers.{{i}}.temporal_", f"{ours}blocks.{{i}}.time."
    return [
        Rule(f"{block}embedding", f"{own}embedding"),
        Rule(f"{block}layer_norm1.{{p}}", f"{own}norm.{{p}}"),
        Rule(tuple(f"{block}attn.{x}_proj.{{p}}" for x in "qkv"), f"{own}attn.qkv.{{p}}", "stack"),
        Rule(f"{block}attn.out_proj.{{p}}", f"{own}attn.proj.{{p}}"),
    ]


def decoder(body: str, head: str, tied: bool, names: Collection[str] = ()) -> list[Rule]:
    """Llama, Mistral, Qwen2 and Qwen3. `body`: before `layers`, with its dot; `head`: before `lm_head`.

    tied   the head is the embedding; either may be stored, or both
    """
    block, own = f"{body}layers.{{i}}.", "decoder.blocks.{i}."
    embed, last = f"{body}embed_tokens.weight", f"{head}lm_head.weight"
    stored = tuple(name for name in (embed, last) if name in names) if tied else ()
    return [
        Rule(stored, "decoder.embed.weight", "twice") if stored else Rule(embed, "decoder.embed.weight"),
        *([] if tied else [Rule(last, "decoder.head.weight")]),
        Rule(f"{block}input_layernorm.weight", f"{own}attn_norm.weight"),
        *(Rule(f"{block}self_attn.{x}_proj.{{p}}", f"{own}attn.{x}.{{p}}") for x in "qkvo"),
        *(Rule(f"{block}self_attn.{x}_norm.weight", f"{own}attn.{x}_norm.weight") for x in "qk"),
        Rule(f"{block}post_attention_layernorm.weight", f"{own}mlp_norm.weight"),
        *(Rule(f"{block}mlp.{x}_proj.weight", f"{own}mlp.{x}.weight") for x in ("gate", "up", "down")),
        Rule(f"{block}self_attn.rotary_emb.inv_freq", None),  # of old files; computed from positions
        Rule(f"{body}rotary_emb.inv_freq", None),
        Rule(f"{body}norm.weight", "decoder.norm.weight"),
    ]


def projector(theirs: str, names: tuple[str, str, str]) -> list[Rule]:
    """Two linear layers and a norm before them. `names`: of the first, the second, and the norm."""
    ours = ("projector.layers.0", "projector.layers.2", "projector.norm")
    return [Rule(f"{theirs}{name}.{{p}}", f"{own}.{{p}}") for name, own in zip(names, ours, strict=True)]
