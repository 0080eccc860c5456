"""What a folder of transformers says: configuration, processors, tokenizer and template as sections of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.types import Described

from . import hf_config, hf_pixels
from .files import JSON, Fields
from .hf_talk import talk

# The shipped preset that stands where a folder says nothing, by type and family; the first is for other families.
BASES: dict[str, dict[str, str]] = {
    "llava": {"llama": "llava-1.5-7b", "mistral": "bakllava-v1", "qwen2": "llava-interleave-qwen-7b"},
    "vipllava": {"llama": "vip-llava-7b"},
    "llava_next": {"llama": "llava-next-vicuna-7b", "mistral": "llava-next-mistral-7b", "qwen2": "llava-next-72b",
                   "yi": "llava-next-34b", "llama3": "llava-next-llama3-8b"},
    "llava_next_video": {"llama": "llava-next-video-7b", "mistral": "llava-next-video-7b-32k",
                         "yi": "llava-next-video-34b"},
    "llava_onevision": {"qwen2": "llava-onevision-qwen2-7b"},
    "video_llava": {"llama": "video-llava-7b-hf"},
}  # fmt: skip
CHATS = ((128_000, "llama3"), (64_000, "yi"))  # Llamas that were taught another way to talk, by their vocabulary
# The tower of a configuration without `vision_config`. One that has it, however sparse, means its type's own defaults.
LARGE: JSON = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
               "patch_size": 14}
TOWERS: dict[str, JSON] = {
    "video_llava": LARGE | {"image_size": 224},
    "llava_onevision": LARGE | {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
                                "image_size": 384},
}  # fmt: skip


def describe(folder: Path, config: Fields) -> Described:
    kind, notes = config.get("model_type", str), list[str]()
    hf_config.packed(config)
    one = kind == "llava_onevision"
    text = config.inside("text_config", {"model_type": "qwen2" if one else "llama"})
    vision = config.inside("vision_config", {"model_type": "siglip_vision_model" if one else "clip_vision_model"})
    if config.get("vision_config") is None:
        vision.defaults |= TOWERS.get(kind, LARGE | {"image_size": 336})
    decoder = hf_config.decoder(text)
    decoder["tied"] = decoder["tied"] or config.get("tie_word_embeddings", bool) or False
    tower, base = _tower(config, vision, kind, notes), base_of(BASES[kind], decoder)
    side: int = tower["options"]["img_size"]
    sections: JSON = {"tower": tower, "projector": _projector(config, kind), "decoder": decoder,
                      "image": _image(config, kind, side)}
    if kind == "llava_next_video":
        sections["video"] = {"packer": _pool(config, vision)}
    elif kind == "video_llava":
        sections["video"] = {"tower": tower | {"prefix": "keep"}}
    images, videos = hf_pixels.processors(folder, kind)
    seen = hf_pixels.pictures(images, config, kind, side)
    if seen and base == BASES["llava"]["qwen2"]:  # frames are pictures
        seen["video"] = {"tiler": seen["image"]["tiler"]}
    _count(folder, tower, notes)
    kinds = ("image", "video") if kind in hf_pixels.CLIPS else ("image",)
    layers = [(config.file.name, sections), (images.file.name, seen),
              (videos.file.name, hf_pixels.clips(videos, images, kind, side, notes)),
              *talk(folder, config, text, kinds, notes),
              ("this folder", {"about": f"A {kind} folder of transformers.", "name": _called(folder),
                               "weights": [{"from": str(folder.resolve()), "format": "llava-hf"}]})]
    return Described(base, tuple((file, said) for file, said in layers if said), tuple(notes))


def _called(folder: Path) -> str:
    """The folder's name; in a cache of the hub, the repository's."""
    home = folder.resolve()
    return home.parents[1].name.rpartition("--")[2] if home.parent.name == "snapshots" else home.name


def base_of(bases: dict[str, str], decoder: JSON) -> str:
    """The preset of a family, among those of a type."""
    family = decoder["family"]
    if family == "llama":
        family = next((name for least, name in CHATS if decoder["vocab"] >= least), family)
    return bases.get(family) or next(iter(bases.values()))


def _tower(config: Fields, vision: Fields, kind: str, notes: list[str]) -> JSON:
    many, one = kind == "vipllava", kind == "llava_onevision"
    key = "vision_feature_layers" if many and "vision_feature_layers" in config else "vision_feature_layer"
    usual = "full" if one else "default"
    strategy = usual if many else config.get("vision_feature_select_strategy", str) or usual
    if strategy not in ("default", "full"):
        raise config.wrong("vision_feature_select_strategy", f"is {strategy!r}, wanted 'default' or 'full'")
    if strategy == "default" and vision.get("model_type") == "siglip_vision_model":
        notes.append(f"{config.file.name}: vision_feature_select_strategy 'default' would drop a patch of a tower that "
                     "has no class token; all patches are kept")
    default: Any = [-2, -5, -8, -11, 6] if many else -1 if one else -2
    tower = hf_config.tower(vision, default, strategy == "full")
    return tower | {"layer": hf_config.listed(config, key, default, tower["options"]["depth"])}


def _projector(config: Fields, kind: str) -> JSON:
    config.must("projector_hidden_act", "gelu", "relu", "silu", default="gelu")
    many = kind == "vipllava"
    bias = True if many else config.get("multimodal_projector_bias", bool, default=True)
    norm = config.number("projector_layernorm_eps") or 1e-5 if many else None
    return {"use": "mlp", "depth": 2, "act": config.get("projector_hidden_act") or "gelu", "bias": bias, "norm": norm}


def _image(config: Fields, kind: str, side: int) -> JSON:
    if kind not in hf_pixels.ANYRES:
        return {"packer": {"use": "flat"}}
    one = kind == "llava_onevision"
    tiler: JSON = {"use": "anyres", "grids": None, "largest": None, "together": "square" if one else "tiles"}
    grids = hf_pixels.grids(config, hf_pixels.pinpoints(config, kind), side)
    rows, cols = grids[-1]
    series = len(grids) == rows * cols and grids == [[r, c] for r in range(1, rows + 1) for c in range(1, cols + 1)]
    tiler |= {"largest": [rows, cols]} if series else {"grids": grids}
    ratio = config.get("vision_aspect_ratio", str) or "anyres_max_9"
    most = ratio.removeprefix("anyres_max_")
    if one and not (ratio.startswith("anyres_max_") and most.isdecimal() and 0 < int(most) <= 1000):
        raise config.wrong("vision_aspect_ratio", f"is {ratio!r}, wanted 'anyres_max_' and a number of tiles")
    return {"tiler": tiler, "packer": {"use": "anyres", "unpad": True, "newline": "row",
                                       "budget": float(most) if one else None}}


def _pool(config: Fields, vision: Fields) -> JSON:
    config.must("spatial_pool_mode", "average", "max", "conv", default="average")
    mode = config.get("spatial_pool_mode") or "average"
    if mode == "conv" and (out := config.get("spatial_pool_out_channels", int)) != vision.whole("hidden_size"):
        raise config.wrong("spatial_pool_out_channels", f"is {out!r}, wanted the tower's {vision.whole('hidden_size')}")
    stride = 2 if config.get("spatial_pool_stride") is None else config.whole("spatial_pool_stride")
    return {"use": "frames", "pool": mode, "stride": stride, "when": "before", "newline": "none"}


def _count(folder: Path, tower: JSON, notes: list[str]) -> None:
    """Would transformers' processor count as many tokens for a tile as the tower makes? Often a field is missing."""
    said, options = Fields.of(folder / "processor_config.json"), tower["options"]
    patch, whole = said.get("patch_size", int), said.get("num_image_tokens", int)
    if not patch and not whole:
        return
    extra = 0 if whole else said.get("num_additional_image_tokens", int) or 0
    told = (whole or (options["img_size"] // patch) ** 2) + extra
    told -= said.get("vision_feature_select_strategy") == "default"
    made = (options["img_size"] // options["patch_size"]) ** 2 + (tower["prefix"] == "keep")
    if told != made:
        what = "num_image_tokens" if whole else "patch_size, num_additional_image_tokens"
        notes.append(f"{said.file.name}: {what} and vision_feature_select_strategy make {told} tokens of a tile, the "
                     f"tower makes {made}; what the tower makes is counted")
