"""Configurations of transformers as sections of a preset: language models and vision towers."""

from __future__ import annotations

from typing import Any

from .files import JSON, Fields

# What a configuration means by a field it leaves out (transformers 5.23).
_TEXT: JSON = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
               "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
TEXT: dict[str, JSON] = {
    "llama": _TEXT,
    "mistral": _TEXT | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                        "sliding_window": 4096},
    "qwen2": _TEXT | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
                      "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": _TEXT | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
                      "max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128},
}  # fmt: skip
_VISION: JSON = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "image_size": 224, "num_channels": 3}
VISION: dict[str, JSON] = {
    "clip_vision_model": _VISION | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": _VISION | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
CLIP = {"quick_gelu": "vit_large_patch14_clip_quickgelu", "gelu": "vit_large_patch14_clip"}
SIGLIP = "vit_so400m_patch14_siglip_384.webli"


def decoder(config: Fields) -> JSON:
    """A language model's configuration as the section `decoder`."""
    family = config.get("model_type", str, default="llama")
    if family not in TEXT:
        raise config.wrong("model_type", f"is {family!r}; vlmkit's own decoder knows {', '.join(TEXT)}")
    config.defaults = TEXT[family]
    config.must("hidden_act", "silu", default="silu")
    config.must("mlp_bias", False, None, default=False)
    config.must("attention_bias", False, None, default=False)
    heads, rope = config.whole("num_attention_heads"), _rope(config)
    context = config.whole("max_position_embeddings")
    return {
        "use": "transformer", "size": None, "family": family,
        "width": config.whole("hidden_size"), "layers": config.whole("num_hidden_layers"), "heads": heads,
        "kv_heads": config.get("num_key_value_heads", int) or heads,
        "head": config.get("head_dim", int) or config.whole("hidden_size") // heads,
        "ffn": config.whole("intermediate_size"), "vocab": config.whole("vocab_size"),
        "context": int(context * rope["factor"]) if rope["type"] in ("linear", "dynamic") else context,
        "theta": _theta(config), "eps": config.number("rms_norm_eps"), "window": _window(config, family),
        "tied": config.get("tie_word_embeddings", bool, default=False) or False,
        "bias": family == "qwen2", "norms": family == "qwen3", "rope": rope,
    }  # fmt: skip


def _theta(config: Fields) -> float:
    new = config.inside("rope_parameters")
    return float(new.number("rope_theta") or config.number("rope_theta") or 10000.0)


def _rope(config: Fields) -> JSON:
    """`rope_parameters` (5.x) or `rope_scaling`; a factor without a type does nothing, as in transformers."""
    told = config.inside("rope_parameters") if config.get("rope_parameters") else config.inside("rope_scaling")
    kind = told.get("rope_type", str) or told.get("type", str) or "default"
    if kind == "default":
        return {"type": "none", "factor": 1.0, "original": None}
    if kind not in ("linear", "dynamic", "llama3"):
        raise told.wrong("rope_type", f"is {kind!r}; vlmkit knows default, linear, dynamic and llama3")
    found: JSON = {"type": kind, "factor": told.number("factor") or 1.0, "original": None}
    if kind == "llama3":
        found |= {"low": told.number("low_freq_factor"), "high": told.number("high_freq_factor")}
    if kind != "linear":
        found["original"] = told.get("original_max_position_embeddings", int) or config.whole("max_position_embeddings")
    return found


def _window(config: Fields, family: str) -> int | None:
    """The sliding window of every layer; null and a missing field mean different things."""
    if family == "llama" or (family != "mistral" and not config.get("use_sliding_window", bool, default=False)):
        return None
    layers = config.whole("num_hidden_layers")
    full = config.get("max_window_layers", int, default=0) if family != "mistral" else 0
    kinds = config.get("layer_types", list) or ["sliding_attention"] * layers
    if full >= layers or set(kinds) == {"full_attention"}:
        return None
    if full or len(set(kinds)) > 1:
        raise config.wrong("layer_types", "mixes full and sliding attention; vlmkit's decoder has one kind for all")
    window: int | None = config.get("sliding_window", int)
    return window


def tower(config: Fields, layer: int | list[int], whole: bool) -> JSON:
    """A vision model's configuration as the section `tower`. `whole`: its prefix tokens are features, too."""
    kind = config.get("model_type", str, default="clip_vision_model")
    if kind not in VISION:
        raise config.wrong("model_type", f"is {kind!r}; vlmkit reads {' and '.join(VISION)}")
    config.defaults = VISION[kind]
    config.must("num_channels", 3, default=3)
    config.must("layer_norm_eps", VISION[kind]["layer_norm_eps"], default=VISION[kind]["layer_norm_eps"])
    width, ffn = config.whole("hidden_size"), config.whole("intermediate_size")
    options: JSON = {
        "img_size": config.whole("image_size"), "patch_size": config.whole("patch_size"), "embed_dim": width,
        "depth": config.whole("num_hidden_layers"), "num_heads": config.whole("num_attention_heads"),
        "mlp_ratio": ratio(width, ffn),
    }  # fmt: skip
    if kind == "siglip_vision_model":
        config.must("hidden_act", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
        named, options = SIGLIP, options | {"act_layer": "gelu_tanh", "global_pool": ""}
    else:
        config.must("hidden_act", *CLIP, default="quick_gelu")
        size = 224 if options["img_size"] == 224 else 336
        named = f"{CLIP[config.get('hidden_act')]}_{size}.openai"
    return {"use": "timm", "model": named, "layer": layer, "options": options,
            "prefix": "keep" if whole and kind == "clip_vision_model" else "drop"}


def ratio(width: int, ffn: int) -> float:
    """timm takes the width of an MLP as a ratio and rounds down."""
    exact = ffn / width
    return exact if int(width * exact) == ffn else (ffn + 0.5) / width


def listed(config: Fields, key: str, default: int) -> Any:
    """A layer, or several."""
    found = config.get(key, int, list, default=default)
    return [found] if isinstance(found, list) and not found else found
