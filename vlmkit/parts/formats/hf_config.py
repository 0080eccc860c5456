"""Configurations of transformers as sections of a preset: language models and vision towers."""

from __future__ import annotations

from typing import Any

from .files import JSON, Fields

# What a configuration means by a field it leaves out (transformers 5.23).
_TEXT: JSON = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
               "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "eos_token_id": 2}
_QWEN: JSON = _TEXT | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
                       "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
                       "eos_token_id": None}
TEXT: dict[str, JSON] = {
    "llama": _TEXT,
    "mistral": _TEXT | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                        "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}  # fmt: skip
BIASES = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}  # the others do not read them
_VISION: JSON = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "image_size": 224}
VISION: dict[str, JSON] = {
    "clip_vision_model": _VISION | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": _VISION | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
CLIP = {"quick_gelu": "vit_large_patch14_clip_quickgelu", "gelu": "vit_large_patch14_clip"}
SIGLIP = "vit_so400m_patch14_siglip_384.webli"


def decoder(config: Fields) -> JSON:
    """A language model's configuration as the section `decoder`. Its defaults say the type where it does not."""
    family = config.get("model_type", str)
    if family not in TEXT:
        raise config.wrong("model_type", f"is {family!r}; vlmkit's own decoder knows {', '.join(TEXT)}")
    config.defaults = TEXT[family] | config.defaults
    packed(config)
    config.must("hidden_act", "silu", "swish", default="silu")
    for bias in BIASES.get(family, ()):
        config.must(bias, False, default=False)
    heads, width, rope = config.whole("num_attention_heads"), config.whole("hidden_size"), _rope(config)
    if config.get("head_dim") is None and width % heads:
        raise config.wrong("hidden_size", f"is {width}, which {heads} heads do not divide")
    context = config.whole("max_position_embeddings")
    if heads % (shared := config.either("num_key_value_heads", "num_attention_heads")):
        raise config.wrong("num_key_value_heads", f"is {shared}, which {heads} heads cannot share evenly")
    return {
        "use": "transformer", "size": None, "family": family,
        "width": width, "layers": config.whole("num_hidden_layers"), "heads": heads,
        "kv_heads": shared,
        "head": width // heads if config.get("head_dim") is None else config.whole("head_dim"),
        "ffn": config.whole("intermediate_size"), "vocab": config.whole("vocab_size"),
        "context": int(context * rope["factor"]) if rope["type"] in ("linear", "dynamic") else context,
        "theta": _theta(config), "eps": config.number("rms_norm_eps"), "window": _window(config, family),
        "tied": config.get("tie_word_embeddings", bool) or False,
        "bias": family == "qwen2", "norms": family == "qwen3", "rope": rope,
    }  # fmt: skip


def _told(config: Fields) -> Fields:
    """What is said about rotary positions: `rope_scaling` of 4.x, else `rope_parameters` of 5.x."""
    return config.inside("rope_scaling" if config.get("rope_scaling") else "rope_parameters")


def _theta(config: Fields) -> float:
    return _told(config).number("rope_theta") or config.number("rope_theta") or 10000.0


def _rope(config: Fields) -> JSON:
    """A factor without a type does nothing, as in transformers; so do a type and a factor beside the mapping."""
    told = _told(config)
    for fields in (told, config):
        fields.must("partial_rotary_factor", 1.0, default=1.0)
    if nested := next((key for key, value in told.data.items() if isinstance(value, dict)), None):
        raise told.wrong(nested, "has rotary positions of its own; vlmkit's decoder has one kind for all layers")
    kind = told.get("rope_type" if "rope_type" in told else "type", str, default="default")
    if kind == "default":
        return {"type": "none", "factor": 1.0, "original": None}
    if kind not in ("linear", "dynamic", "llama3"):
        raise told.wrong("rope_type", f"is {kind!r}; vlmkit knows default, linear, dynamic and llama3")
    found: JSON = {"type": kind, "factor": _needed(told, "factor", 1), "original": None}
    if kind == "llama3":
        found |= {"low": _needed(told, "low_freq_factor"), "high": _needed(told, "high_freq_factor")}
        known = told.get("original_max_position_embeddings") is not None
        found["original"] = (told.whole("original_max_position_embeddings") if known else
                             config.whole("max_position_embeddings"))
    elif kind == "dynamic":
        found["original"] = config.whole("max_position_embeddings")
    return found


def _needed(fields: Fields, key: str, least: float = 1e-3) -> float:
    found = fields.number(key, least)
    if found is None:
        raise fields.wrong(key, f"is missing, wanted a number of at least {least:g}")
    return found


def _window(config: Fields, family: str) -> int | None:
    """The sliding window of every layer; null and a missing field mean different things."""
    if family == "llama" or (family != "mistral" and not config.get("use_sliding_window", bool)):
        return None
    if family != "mistral":
        layers, full = config.whole("num_hidden_layers"), config.get("max_window_layers", int) or 0
        told = config.get("layer_types", list)
        kinds = set(map(str, told)) if told else {"full_attention"} if full >= layers else {"sliding_attention"}
        if kinds == {"full_attention"}:
            return None
        if kinds != {"sliding_attention"} or (not told and full > 0):
            raise config.wrong("layer_types" if told else "max_window_layers", "asks for full attention in some layers "
                               "and a window in others; vlmkit's decoder has one kind for all")
    return None if config.get("sliding_window") is None else config.whole("sliding_window")


def tower(config: Fields, layer: int | list[int], whole: bool) -> JSON:
    """A vision model's configuration as the section `tower`. `whole`: its prefix tokens are features, too."""
    kind = config.get("model_type", str)
    if kind not in VISION:
        raise config.wrong("model_type", f"is {kind!r}; vlmkit reads {' and '.join(VISION)}")
    config.defaults = VISION[kind] | config.defaults
    packed(config)
    config.must("num_channels", 3, default=3)
    config.must("layer_norm_eps", VISION[kind]["layer_norm_eps"], default=None)
    width, ffn, heads = config.whole("hidden_size"), config.whole("intermediate_size"), "num_attention_heads"
    options: JSON = {
        "img_size": config.whole("image_size"), "patch_size": config.whole("patch_size"), "embed_dim": width,
        "depth": config.whole("num_hidden_layers"), "num_heads": config.whole(heads), "mlp_ratio": ratio(width, ffn),
    }  # fmt: skip
    if width % options["num_heads"]:
        raise config.wrong("hidden_size", f"is {width}, which {options['num_heads']} heads do not divide")
    if options["patch_size"] > options["img_size"]:
        raise config.wrong("patch_size", f"is {options['patch_size']}, more than image_size {options['img_size']}")
    if kind == "siglip_vision_model":
        config.must("hidden_act", "gelu_pytorch_tanh", default=None)
        named, options = SIGLIP, options | {"act_layer": "gelu_tanh", "global_pool": ""}
    else:
        config.must("hidden_act", *CLIP, default=None)
        size = 224 if options["img_size"] == 224 else 336
        named = f"{CLIP[config.get('hidden_act') or 'quick_gelu']}_{size}.openai"
        options |= {"act_layer": None, "global_pool": None}  # the model's own, whatever the nearest preset says
    return {"use": "timm", "model": named, "layer": layer, "options": options,
            "prefix": "keep" if whole and kind == "clip_vision_model" else "drop"}


def packed(config: Fields) -> None:
    """Refuse weights that were stored in fewer bits."""
    if config.get("quantization_config") is not None:
        raise config.wrong("quantization_config", "is given: the weights are packed in a way that vlmkit does not read")


def ratio(width: int, ffn: int) -> float:
    """timm takes the width of an MLP as a ratio and rounds down."""
    exact = ffn / width
    return exact if int(width * exact) == ffn else (ffn + 0.5) / width


def listed(config: Fields, key: str, default: Any, depth: int = 1024) -> Any:
    """The layer that is read, or several, of a tower so deep; 0 would be its input."""
    found = config.get(key, int, list, default=default)
    several = found if isinstance(found, list) else [found]
    if not several or any(type(n) is not int or not 1 <= abs(n) <= depth for n in several):
        raise config.wrong(key, f"is {found!r}, wanted layers from 1 to {depth} or -{depth} to -1")
    return found
