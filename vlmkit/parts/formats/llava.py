"""Folders of LLaVA's authors: LLaVA, LLaVA-NeXT(-Video), LLaVA-OneVision, LLaVA-Video, ViP-LLaVA and Video-LLaVA."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.contracts import PartConfig
from vlmkit.errors import CheckpointFormatError, CheckpointMismatchError
from vlmkit.types import Described, Dressed, Rule

from . import hf_config, tables
from .files import JSON, Fields, only_read, read_json
from .hf_folder import BASES as THEIRS
from .hf_folder import base_of

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.model.vlm import VLM

FAMILIES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
BASES = THEIRS | {"llava_v1": {"llama": "llava-v1-7b"}, "video_llava": {"llama": "video-llava-7b"},
                  "llava_video": {"qwen2": "llava-video-7b-qwen2"}}
SIGLIP: JSON = {"layer": -1, "options": {"depth": 26, "act_layer": "gelu_tanh", "global_pool": ""}}
VIP = [-2, -5, -8, -11, 6]


class Seen(NamedTuple):
    """A tower as these folders name it: timm's name, pixels of an edge, where it was first published, and more."""

    model: str
    side: int
    stock: str
    more: JSON = {}  # noqa: RUF012


CLIP_336 = Seen("vit_large_patch14_clip_quickgelu_336.openai", 336, "openai/clip-vit-large-patch14-336")
TOWERS = {  # the first whose name is part of theirs, which may be a path
    "clip-vit-large-patch14-336": CLIP_336,
    "clip_4layer_336": CLIP_336._replace(more={"layer": VIP}),  # ViP-LLaVA's (from memory, unverified)
    "clip-vit-large-patch14": Seen("vit_large_patch14_clip_quickgelu_224.openai", 224, "openai/clip-vit-large-patch14"),
    "siglip-so400m-patch14-384": Seen(hf_config.SIGLIP, 384, "google/siglip-so400m-patch14-384", SIGLIP),
    "LanguageBind_Image": Seen("vit_large_patch14_clip_224.openai", 224, "LanguageBind/LanguageBind_Image"),
}  # fmt: skip
FEATURES: dict[str, JSON] = {  # what of a tower's layer is read
    "patch": {"prefix": "drop"}, "cls_patch": {"prefix": "keep"},
    "slice_m25811_f6_patch": {"prefix": "drop", "layer": VIP},
    "slice_m25811_f6_cls_patch": {"prefix": "keep", "layer": VIP},
}  # fmt: skip
MERGES: dict[str, JSON] = {  # how the tiles of a picture become one row of tokens
    "flat": {"use": "flat"},
    "spatial": {"use": "anyres", "unpad": False, "newline": "none"},
    "spatial_unpad": {"use": "anyres", "unpad": True, "newline": "row"},
}  # fmt: skip
STYLES = (("llama-2", "llava_llama_2"), ("v1", "llava_v1"))  # of the first LLaVA, by the folder's name, as they choose
POOLS = ("mm_resampler_type", "mm_spatial_pool_mode", "mm_spatial_pool_stride")  # what only models of clips say
NEWLINES = {"grid": "row", "frame": "frame", "one_token": "end", "no_token": "none"}


class Config(PartConfig):
    """No fields."""


class Llava:
    def recognise(self, folder: Path) -> bool:
        config = read_json(folder / "config.json")
        seen = config.keys() & {"mm_vision_tower", "mm_image_tower"}
        return bool(seen and "text_config" not in config) or _is_lora(folder)

    def describe(self, folder: Path) -> Described:
        config = Fields(read_json(folder / "config.json"), folder / "config.json")
        _refuse_differences(folder, config)
        family = FAMILIES.get(config.get("model_type", str))
        if not family:
            raise config.wrong("model_type", f"is {config.get('model_type')!r}; vlmkit reads {', '.join(FAMILIES)}")
        decoder = hf_config.decoder(Fields(config.data | {"model_type": family}, config.file))
        kind = _kind(config)
        sections: JSON = {"tower": _tower(config), "projector": _projector(config), "decoder": decoder,
                          **_streams(config, kind), "chat": _chat(config, kind, _called(folder))}
        mark = {"image": "<im_patch>"} if config.get("mm_use_im_patch_token", bool) else {}
        home = str(folder.resolve())
        own: JSON = {
            "about": f"A {kind} folder of its authors.", "name": folder.resolve().name,
            "tokenizer": {"from": home, "image": "<image>", "video": "<video>"} | mark,
            "weights": [{"from": home, "format": "llava"}],
        }  # fmt: skip
        return Described(base_of(BASES[kind], decoder), ((config.file.name, sections), ("this folder", own)))

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """With one tower, or with Video-LLaVA's two; either may have a `vision_model.` inside."""
        own = bool(preset.video and preset.video.tower)
        seen = ("image_tower.image_tower", "video_tower.video_tower") if own else ("vision_tower.vision_tower",)
        rules: list[Rule] = []
        for tower, ours in zip(seen, ("tower.vit.", "video.tower.vit."), strict=False):
            before = f"model.{tower}."
            inner = f"{before}vision_model."
            whole = any(n.startswith(inner) for n in names) if names else not own
            rules += tables.vit(inner if whole else before, ours) + tables.temporal(before, ours)
        if names:
            _whole(preset, names)
        tied = not hasattr(preset.decoder, "tied") or preset.decoder.tied
        return [
            *rules,
            Rule("model.mm_projector.weight", "projector.linear.weight"),
            Rule("model.mm_projector.bias", "projector.linear.bias"),
            Rule("model.mm_projector.{i}.{p}", "projector.layers.{i}.{p}"),
            Rule("model.mm_projector.final_linear.{i}.{p}", "projector.layers.{i}.{p}"),
            Rule("model.mm_projector.clip_layernorm.{p}", "projector.norm.{p}"),
            Rule("model.image_newline", "separators.newline"),
            Rule("model.faster_token", "separators.faster"),
            Rule("model.vision_resampler.pool.{p}", "video.packer.conv.{p}"),
            *tables.decoder("model.", "", tied, names),
        ]

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        raise only_read("llava")


def _is_lora(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() or any(folder.glob("non_lora_trainables.*"))


def _called(folder: Path) -> str:
    """The folder's name; in a cache of the hub, the repository's."""
    home = folder.resolve()
    return home.parents[1].name if home.parent.name == "snapshots" else home.name


def _refuse_differences(folder: Path, config: Fields) -> None:
    """Adapters and deltas are no weights until they are added to those they differ from."""
    if _is_lora(folder):
        raise CheckpointFormatError(
            "holds a LoRA adapter, not whole weights", where=folder,
            hint="merge it first: `scripts/merge_lora_weights.py` of LLaVA's repository, or peft's "
                 "`merge_and_unload`; then load the merged folder")
    if any(re.search(r"(^|[-_/])delta([-_/]|$)", n) for n in (_called(folder), config.get("_name_or_path", str) or "")):
        raise CheckpointFormatError(
            "holds differences to LLaMA, not whole weights", where=folder,
            hint="add them first: `python -m llava.model.apply_delta --base LLAMA --delta THIS --target OUT` of "
                 "LLaVA's repository; then load OUT")


def _kind(config: Fields) -> str:
    """Which model of the family it is, by what it can do; `transformers`' names where it has one."""
    if "mm_image_tower" in config:
        return "video_llava"
    config.must("mm_resampler_type", None, "spatial_pool", default=None)
    tower, aspect = _seen(config), config.get("image_aspect_ratio", str) or ""
    if aspect.startswith("anyres"):
        if tower.model == hf_config.SIGLIP:
            return "llava_video" if config.get("mm_newline_position", str) == "grid" else "llava_onevision"
        return "llava_next_video" if any(config.get(name) for name in POOLS) else "llava_next"
    if _projector(config)["use"] == "linear":
        return "llava_v1"
    if FAMILIES.get(config.get("model_type", str)) == "qwen2" and tower.model != hf_config.SIGLIP:
        return "llava_next"  # the base for Qwen and CLIP
    return "vipllava" if tower.more.get("layer") == VIP else "llava"


def _seen(config: Fields) -> Seen:
    key = "mm_image_tower" if "mm_image_tower" in config else "mm_vision_tower"
    name = config.get(key, str) or ""
    found = next((tower for part, tower in TOWERS.items() if part in name), None)
    if found is None or config.get("s2", bool):  # S2 reads the picture in several sizes
        raise config.wrong(key, f"is {name!r}; vlmkit knows {', '.join(TOWERS)}")
    if key == "mm_image_tower" and "LanguageBind_Video" not in (config.get("mm_video_tower", str) or ""):
        raise config.wrong("mm_video_tower", f"is {config.get('mm_video_tower')!r}; vlmkit knows LanguageBind_Video")
    return found


def _tower(config: Fields) -> JSON:
    seen, feature = _seen(config), config.get("mm_vision_select_feature", str) or "patch"
    if feature not in FEATURES:
        raise config.wrong("mm_vision_select_feature", f"is {feature!r}; vlmkit knows {', '.join(FEATURES)}")
    layer = hf_config.listed(config, "mm_vision_select_layer", -2)
    return {"use": "timm", "model": seen.model, "layer": layer} | FEATURES[feature] | seen.more


def _projector(config: Fields) -> JSON:
    name = config.get("mm_projector_type", str) or "linear"
    if name == "linear":
        return {"use": "linear"}
    depth = re.fullmatch(r"mlp(\d{1,2})x_gelu", name)
    if not depth:
        raise config.wrong("mm_projector_type", f"is {name!r}; vlmkit knows linear and mlpNx_gelu")
    vip = _seen(config).more.get("layer") == VIP
    return {"use": "mlp", "depth": int(depth[1]), "act": "gelu", "bias": True, "norm": 1e-5 if vip else None}


def _streams(config: Fields, kind: str) -> JSON:
    """How pictures and clips become tokens; what the folder does not say stays as the base has it."""
    if kind == "video_llava":
        return {"video": {"tower": {"layer": hf_config.listed(config, "mm_vision_select_layer", -2)}}}
    said: JSON = {"image": _image(config)}
    if kind not in ("llava_next_video", "llava_onevision", "llava_video"):
        return said
    newline = config.get("mm_newline_position", str)
    if newline and newline not in NEWLINES:
        raise config.wrong("mm_newline_position", f"is {newline!r}; vlmkit knows {', '.join(NEWLINES)}")
    packer: JSON = {"pool": config.get("mm_spatial_pool_mode", str), "newline": newline and NEWLINES[newline]}
    stride = config.get("mm_spatial_pool_stride", int)
    if config.get("add_faster_video", bool):
        packer |= {"use": "slowfast", "slow": stride, "every": config.get("faster_token_stride", int)}
    else:
        packer |= {"use": "frames", "stride": stride, "when": config.get("mm_pooling_position", str)}
    return said | {"video": {"packer": {key: value for key, value in packer.items() if value is not None}}}


def _image(config: Fields) -> JSON:
    aspect, seen = config.get("image_aspect_ratio", str) or "square", _seen(config)
    if not aspect.startswith("anyres"):
        if aspect not in ("square", "pad"):
            raise config.wrong("image_aspect_ratio", f"is {aspect!r}; vlmkit knows square, pad, anyres, anyres_max_N")
        fit = "pad" if aspect == "pad" else "squash" if seen.model == hf_config.SIGLIP else "crop"
        return {"tiler": {"use": "square", "fit": fit}, "packer": {"use": "flat"}}
    merge, most = config.get("mm_patch_merge_type", str) or "flat", aspect.removeprefix("anyres").removeprefix("_max_")
    if merge not in MERGES or not (most.isdigit() or not most):
        raise config.wrong("mm_patch_merge_type" if merge not in MERGES else "image_aspect_ratio",
                           f"is {merge if merge not in MERGES else aspect!r}; vlmkit knows {', '.join(MERGES)}, with "
                           "anyres or anyres_max_N")
    packer = MERGES[merge] | ({"budget": float(most) if most else None} if merge != "flat" else {})
    return {"tiler": _grids(config, seen.side) | {"together": "square" if most else "tiles"}, "packer": packer}


def _grids(config: Fields, side: int) -> JSON:
    """Sizes (width, height) in pixels, or a range of grids `(1x1),...,(6x6)`, as a tiler's grids of rows and cols."""
    key = "image_grid_pinpoints"
    told: Any = config.get(key, list, str)
    if isinstance(told, str):
        ends = [(int(w), int(h)) for w, h in re.findall(r"\((\d{1,2})x(\d{1,2})\)", told)]
        if ends:
            told = [[side * w, side * h] for w in range(ends[0][0], ends[-1][0] + 1)
                    for h in range(ends[0][1], ends[-1][1] + 1)]
        else:
            told = [[int(w), int(h)] for w, h in re.findall(r"[(\[](\d{1,5}), *(\d{1,5})[)\]]", told)]
    grids = []
    for point in told or []:
        if (not isinstance(point, list) or len(point) != 2
                or any(type(n) is not int or n < side or n % side for n in point)):
            raise config.wrong(key, f"holds {point!r}, wanted [width, height], multiples of {side}")
        grids.append([point[1] // side, point[0] // side])
    if not grids:
        raise config.wrong(key, f"is {config.get(key)!r}; wanted [[width, height], ...] or '(1x1),...,(6x6)'")
    edge = range(1, grids[-1][0] + 1)
    if sorted(grids) == [[rows, cols] for rows in edge for cols in edge]:
        return {"use": "anyres", "largest": grids[-1], "grids": None}
    return {"use": "anyres", "grids": grids, "largest": None}


def _chat(config: Fields, kind: str, called: str) -> JSON:
    wrapped = config.get("mm_use_im_start_end", bool)
    style = next((style for part, style in STYLES if part in called.lower()), None) if kind == "llava_v1" else None
    return {"visual": ["<im_start>", "<im_end>"] if wrapped else None} | ({"style": style} if style else {})


def _whole(preset: Preset, names: Collection[str]) -> None:
    """Without its tower, or with nothing but its projector, such a folder is a part: say how it becomes a whole."""
    if any(entry.format != "llava" or entry.into for entry in preset.weights):
        return
    has = {"tower": any(re.match(r"model\.(vision|image)_tower\.", name) for name in names),
           "projector": any(name.startswith("model.mm_projector.") for name in names),
           "decoder": any(name.startswith("model.layers.") for name in names)}
    if all(has.values()):
        return
    stock = next((tower.stock for tower in TOWERS.values() if tower.model == getattr(preset.tower, "model", "")), "...")
    others = {"tower": f"{{from: {stock}, format: clip, into: [tower]}}",
              "projector": "{from: ..., format: llava, into: [projector]}",
              "decoder": "{from: ..., format: language, into: [decoder]}"}
    own = [name for name, there in has.items() if there]
    own += ["separators"] * ("model.image_newline" in names)
    lines = [f"{{from: {preset.weights[0].from_}, format: llava, into: [{', '.join(own)}]}}",
             *(others[name] for name, there in has.items() if not there)]
    raise CheckpointMismatchError(
        f"holds no {' and no '.join(name for name, there in has.items() if not there)}", where=preset.weights[0].from_,
        hint="name what holds the rest in a preset:\n  weights:\n" + "\n".join(f"    - {line}" for line in lines))


def build(config: Config) -> Llava:
    return Llava()


EXAMPLE: dict[str, object] = {}
