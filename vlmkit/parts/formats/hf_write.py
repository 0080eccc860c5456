"""A composition as a folder of transformers: which of its classes it is, and every file that says so.

What `hf_config` and `hf_folder` read, read backwards. A part that no class knows raises PresetError with its name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.types import Dressed, reach

from . import hf_words
from .files import JSON, write_json
from .hf_sight import Sight, homeless, several

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.contracts import VisionTower
    from vlmkit.model.vlm import VLM

CLASSES = {  # model_type -> model, processor, image processor, video processor
    "llava": ("LlavaForConditionalGeneration", "LlavaProcessor", "", ""),
    "vipllava": ("VipLlavaForConditionalGeneration", "LlavaProcessor", "", ""),
    "llava_next": ("LlavaNextForConditionalGeneration", "LlavaNextProcessor", "LlavaNextImageProcessor", ""),
    "llava_next_video": ("LlavaNextVideoForConditionalGeneration", "LlavaNextVideoProcessor",
                         "LlavaNextImageProcessor", "LlavaNextVideoVideoProcessor"),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionProcessor",
                        "LlavaOnevisionImageProcessor", "LlavaOnevisionVideoProcessor"),
    "video_llava": ("VideoLlavaForConditionalGeneration", "VideoLlavaProcessor", "VideoLlavaImageProcessor",
                    "VideoLlavaVideoProcessor"),
}  # fmt: skip
FITS = {"pad": "LlavaImageProcessor", "crop": "CLIPImageProcessor", "squash": "SiglipImageProcessor"}

# The values of a preset that a class has a meaning for, the usual one first. None: also where there is no such section.
EVERY: JSON = {"tower.use": ["timm"], "projector.use": ["mlp"], "projector.depth": [2], "decoder.use": ["transformer"],
               "image.tower": [None], "image.projector": [None], "video.tower.use": ["timm", None],
               "video.projector": [None]}  # fmt: skip
SQUARE: JSON = {"image.tiler.use": ["square"], "image.packer.newline": ["none"]}
GRID: JSON = {"image.tiler.use": ["anyres"], "image.packer.unpad": [True], "image.packer.newline": ["row"],
              "projector.norm": [None]}  # fmt: skip
CLIPS: JSON = {"video.sampler.use": ["uniform", "fps", None], "video.sampler.rule": ["floor", None],
               "video.tiler.use": ["square", None], "video.tiler.fit": ["crop", "squash", None],
               "chat.clip": ["", None]}  # fmt: skip
MEANS: dict[str, JSON] = {
    "llava": SQUARE | {"video.packer.use": ["flat", None], "video.packer.newline": ["none", None]},
    "vipllava": SQUARE | {"video.packer.use": ["flat", None], "video.packer.newline": ["none", None],
                          "projector.bias": [True]},
    "llava_next": GRID | {"image.tiler.together": ["tiles"], "image.packer.budget": [None]},
    "llava_next_video": GRID | CLIPS | {
        "image.tiler.together": ["tiles"], "image.packer.budget": [None],
        "video.packer.use": ["frames"], "video.packer.pool": ["average", "max", "conv"], "video.packer.stride": [2],
        "video.packer.when": ["before"], "video.packer.newline": ["none"]},
    "llava_onevision": GRID | CLIPS | {
        "image.tiler.together": ["square"], "image.tiler.fit": ["pad"],
        "video.packer.use": ["frames", None], "video.packer.pool": ["bilinear", None],
        "video.packer.stride": [2, None], "video.packer.when": ["after", None], "video.packer.newline": ["end", None]},
    "video_llava": SQUARE | CLIPS | {"image.tiler.fit": ["crop"], "video.packer.use": ["flat"],
                                     "video.packer.newline": ["none"], "projector.norm": [None]},
}  # fmt: skip
USUAL = {  # a part that has a home, written out, for those whose fields must be named
    "projector": "{use: mlp, depth: 2}", "decoder": "transformer", "image.packer": "flat or anyres",
    "video.packer": "flat or frames"}  # fmt: skip


def dress(folder: Path, preset: Preset, model: VLM) -> Dressed:
    """Write every file but the weights beside the tokenizer.json that lies in the folder."""
    kind = _kind(preset)
    if wrong := _foreign(preset, EVERY | MEANS[kind]):
        raise homeless(*wrong[0], kind) if len(wrong) == 1 else several(wrong, kind)
    sights = {"vision_tower": Sight.of(model.tower, preset.tower, "tower")}
    if kind == "video_llava" and preset.video:
        own = Sight.of(model.part("video", "tower")[1], preset.video.tower, "video.tower")
        sights = {"image_tower": sights["vision_tower"], "video_tower": own}
    sight = next(iter(sights.values()))
    _fits(kind, preset, *sights.values())
    words = hf_words.dress(folder, preset, "video" in kind or kind == "llava_onevision", CLASSES[kind][1])
    dtype = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
    write_json(folder / "config.json", _config(kind, preset, sight, words, dtype))
    _processors(folder, kind, preset, sight, words, model)
    extra = {f"{name}.vision_model.{key}": tensor
             for name, seen in sights.items() for key, tensor in seen.unapplied().items()}
    return Dressed(extra, words.rows, (*sight.notes(), *_frames_noted(kind, preset), *words.notes))


def _frames_noted(kind: str, preset: Preset) -> list[str]:
    video: Any = preset.video
    if video and kind in ("llava", "vipllava"):
        return [f"video: transformers' {kind} takes no clips; give it the frames as pictures"]
    if video and video.sampler.use == "fps":
        return [f"video.sampler.most: transformers does not stop at {video.sampler.most} frames"]
    return []


def _kind(preset: Preset) -> str:
    image, video = preset.image, preset.video
    if image is None:
        raise homeless("image", "a model that sees no pictures", "image={tiler: {use: square}, packer: flat}")
    if video and video.tower:
        return "video_llava"
    if image.packer.use == "flat":
        return "vipllava" if getattr(preset.projector, "norm", None) else "llava"
    if image.packer.use != "anyres":
        raise homeless("image.packer", image.packer.use, "image.packer=flat or image.packer=anyres")
    if getattr(image.tiler, "together", "") == "square" or getattr(image.packer, "budget", None) is not None:
        return "llava_onevision"
    return "llava_next_video" if video else "llava_next"


def _foreign(preset: Preset, means: JSON) -> list[tuple[str, str, str]]:
    """Where a preset's value is none that the class has a meaning for: the path, the value, the nearest."""
    wrong: list[tuple[str, str, str]] = []
    for path, values in means.items():
        found = reach(preset, path)
        part, _, field = path.rpartition(".")
        if found in values or any(part == other for other, *_ in wrong):
            continue
        usual = json.dumps(values[0]).strip('"')
        if field == "use":
            wrong.append((part, str(found), f"{part}={USUAL.get(part, usual)}"))
        else:
            wrong.append((path, getattr(found, "use", None) or repr(found), f"{path}={usual}"))
    return wrong


def _fits(kind: str, preset: Preset, sight: Sight, own: Sight | None = None) -> None:
    """What no single field tells. `own`: the tower of clips"""
    keep = getattr(preset.tower, "prefix", "drop") == "keep" and sight.prefix
    if keep and kind not in ("llava", "video_llava"):
        raise homeless("tower.prefix", "keep", "tower.prefix=drop", kind)
    if kind == "vipllava" and not sight.prefix:
        raise homeless("tower.model", "a tower without a class token", "a CLIP tower", kind)
    if kind == "llava_next_video" and sight.grid % 2:
        raise homeless("video.packer.stride", f"a grid of {sight.grid} x {sight.grid} in steps of 2",
                       "tower.options.img_size that gives an even grid", kind)
    budget = getattr(preset.image.packer, "budget", None) if preset.image else None
    if budget is not None and budget != int(budget):
        raise homeless("image.packer.budget", str(budget), f"image.packer.budget={round(budget)}", kind)
    if own and preset.video:
        if own.config != sight.config or own.layer != sight.layer:
            raise homeless("video.tower", "another tower than the pictures'", "video.tower as tower is", kind)
        if own.prefix and getattr(preset.video.tower, "prefix", "") != "keep":
            raise homeless("video.tower.prefix", "drop", "video.tower.prefix=keep", kind)


def _config(kind: str, preset: Preset, sight: Sight, words: hf_words.Words, dtype: str) -> JSON:
    projector: Any = preset.projector
    text = text_config(preset.decoder, words.rows) | words.said
    said: JSON = {
        "architectures": [CLASSES[kind][0]], "model_type": kind, "torch_dtype": dtype,
        "image_token_index": words.mark("image"), "projector_hidden_act": projector.act,
        "image_seq_length": _tokens(preset, sight), "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text, "vision_config": sight.config}  # fmt: skip
    if words.pad:
        said["pad_token_id"] = words.ids[words.pad]
    if kind == "vipllava":
        said |= {"vision_feature_layers": sight.layer, "vision_feature_layer": sight.layer,  # of 4.x, and of 5.x
                 "projector_layernorm_eps": projector.norm}
    else:
        said |= {"vision_feature_layer": sight.layer, "vision_feature_select_strategy": _strategy(preset, sight),
                 "multimodal_projector_bias": projector.bias}
    if kind in ("llava_next_video", "llava_onevision", "video_llava"):
        said["video_token_index"] = words.mark("video")
    if kind == "llava_next_video":
        packer: Any = preset.video and preset.video.packer
        said |= {"spatial_pool_mode": packer.pool, "spatial_pool_stride": packer.stride,
                 "spatial_pool_out_channels": sight.config["hidden_size"]}
    if kind in ("llava_next", "llava_next_video", "llava_onevision"):
        said["image_grid_pinpoints"] = _pinpoints(preset, sight)
    if kind == "llava_onevision":
        said["vision_aspect_ratio"] = _ratio(preset)
    return said


def text_config(decoder: Any, rows: int) -> JSON:
    """The section `decoder` as a language model's configuration. `rows`: of the embedding."""
    family = _family(decoder)
    said: JSON = {
        "model_type": family, "vocab_size": rows, "hidden_size": decoder.width, "intermediate_size": decoder.ffn,
        "num_hidden_layers": decoder.layers, "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads, "hidden_act": "silu", "rms_norm_eps": decoder.eps,
        "max_position_embeddings": decoder.context, "rope_theta": decoder.theta, "rope_scaling": None,
        "tie_word_embeddings": decoder.tied, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family != "qwen2" or decoder.head * decoder.heads != decoder.width:
        said["head_dim"] = decoder.head
    if family in ("llama", "qwen3"):
        said["attention_bias"] = False
    if family != "llama":
        said["sliding_window"] = decoder.window
    if family in ("qwen2", "qwen3"):
        slides = decoder.window is not None
        said |= {"use_sliding_window": slides, "max_window_layers": 0 if slides else decoder.layers}
    return said | _rope(decoder)


def _family(decoder: Any) -> str:
    """The family that has these biases, norms and windows; its own name where that fits."""
    fits = {"llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
    found = [name for name, has in fits.items() if has == (decoder.bias, decoder.norms)
             and (name != "llama" or decoder.window is None)]
    if not found:
        raise homeless("decoder", "a bias and norms at once", "decoder.norms=false, or decoder.bias=false")
    return str(decoder.family) if decoder.family in found else found[0]


def _rope(decoder: Any) -> JSON:
    rope = decoder.rope
    if rope.type == "none":
        return {}
    scaling: JSON = {"rope_type": rope.type, "type": rope.type, "factor": rope.factor}
    if rope.type == "llama3":
        scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high,
                    "original_max_position_embeddings": rope.original or decoder.context}
        return {"rope_scaling": scaling}
    before = rope.original or math.ceil(decoder.context / rope.factor)
    return {"rope_scaling": scaling, "max_position_embeddings": before}


def _strategy(preset: Preset, sight: Sight) -> str:
    return "default" if sight.prefix and getattr(preset.tower, "prefix", "drop") == "drop" else "full"


def _tokens(preset: Preset, sight: Sight) -> int:
    """Of one tile."""
    return sight.grid**2 + (sight.prefix if _strategy(preset, sight) == "full" else 0)


def _pinpoints(preset: Preset, sight: Sight) -> list[list[int]]:
    tiler: Any = preset.image and preset.image.tiler
    return [[rows * sight.side, cols * sight.side] for rows, cols in tiler.choices]


def _ratio(preset: Preset) -> str:
    """Without a budget: one that no grid exceeds."""
    image: Any = preset.image
    most = image.packer.budget or max(rows * cols for rows, cols in image.tiler.choices)
    return f"anyres_max_{int(most)}"


def _processors(folder: Path, kind: str, preset: Preset, sight: Sight, words: hf_words.Words, model: VLM) -> None:
    """processor_config.json, preprocessor_config.json, and video_preprocessor_config.json where there are clips."""
    image: Any = preset.image
    _, processor, pictures, clips = CLASSES[kind]
    said: JSON = {"processor_class": processor, "image_token": words.marks["image"],
                  "vision_feature_select_strategy": _strategy(preset, sight)}
    if clips:
        said["video_token"] = words.marks["video"]
    if kind == "llava_onevision":
        said |= {"num_image_tokens": sight.grid**2 + sight.prefix, "vision_aspect_ratio": _ratio(preset)}
    else:
        said |= {"patch_size": sight.patch, "num_additional_image_tokens": sight.prefix}
    write_json(folder / "processor_config.json", said)

    looks = {"processor_class": processor, "do_convert_rgb": True, "do_resize": True, "resample": 3, "do_rescale": True,
             "rescale_factor": 1 / 255, "do_normalize": True}  # fmt: skip
    fit = "squash" if kind == "llava_onevision" else getattr(image.tiler, "fit", "crop") if not pictures else "crop"
    more: JSON = {"do_pad": True} if kind not in ("video_llava", "llava", "vipllava") or fit == "pad" else {}
    if kind in ("llava_next", "llava_next_video", "llava_onevision"):
        more["image_grid_pinpoints"] = _pinpoints(preset, sight)
    named = {"image_processor_type": pictures or FITS[fit]}
    said = named | looks | _statistics(model.tower) | _size(fit, sight) | more
    write_json(folder / "preprocessor_config.json", said)
    if clips:
        video: Any = preset.video
        fit = video.tiler.fit if video else "squash" if kind == "llava_onevision" else "crop"
        tower = model.part("video", "tower")[1] if video else model.tower
        said = {"video_processor_type": clips} | looks | _statistics(tower) | _size(fit, sight) | _frames(video)
        write_json(folder / "video_preprocessor_config.json", said)


def _statistics(tower: VisionTower) -> JSON:
    return {"image_mean": list(tower.mean), "image_std": list(tower.std)}


def _size(fit: str, sight: Sight) -> JSON:
    square = {"height": sight.side, "width": sight.side}
    if fit == "squash":
        return {"size": square, "do_center_crop": False}
    return {"size": {"shortest_edge": sight.side}, "do_center_crop": True, "crop_size": square}


def _frames(video: Any) -> JSON:
    """How many frames transformers takes when it is asked to choose (`do_sample_frames`)."""
    if video is None:
        return {}
    return {"fps": video.sampler.fps} if video.sampler.use == "fps" else {"num_frames": video.sampler.frames}
