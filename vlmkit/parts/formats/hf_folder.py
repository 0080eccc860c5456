"""What a folder of transformers says: configuration, processors, tokenizer and template as sections of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.types import Described

from . import hf_config
from .files import JSON, Fields, read_json, read_text

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


def describe(folder: Path, config: Fields) -> Described:
    kind = config.get("model_type", str)
    decoder = hf_config.decoder(config.inside("text_config"))
    if config.get("tie_word_embeddings", bool):
        decoder["tied"] = True
    notes: list[str] = []
    images = _images(folder)
    side = config.inside("vision_config").get("image_size", int, default=224)
    sections: JSON = {
        "tower": _tower(config, kind, notes), "projector": _projector(config, kind), "decoder": decoder,
        "image": _image(config, kind, side),
    }  # fmt: skip
    if kind == "llava_next_video":
        pool, stride = config.get("spatial_pool_mode", str) or "average", config.get("spatial_pool_stride", int) or 2
        sections["video"] = {"packer": {"use": "frames", "pool": pool, "stride": stride, "when": "before",
                                        "newline": "none"}}
    elif kind == "video_llava":
        sections["video"] = {"tower": sections["tower"] | {"prefix": "keep"}}
    layers = [(config.file.name, sections), (images.file.name, _looks(images, kind, side, notes)),
              *_clips(folder, kind), *_talk(folder, config)]
    layers += [("this folder", {"about": f"A {kind} folder of transformers.", "name": folder.resolve().name,
                                "weights": [{"from": str(folder.resolve()), "format": "llava-hf"}]})]
    return Described(_base(kind, decoder), tuple((file, said) for file, said in layers if said), tuple(notes))


def _base(kind: str, decoder: JSON) -> str:
    bases, family = BASES[kind], decoder["family"]
    if family == "llama":
        family = next((name for least, name in CHATS if decoder["vocab"] >= least), family)
    return bases.get(family) or next(iter(bases.values()))


def _tower(config: Fields, kind: str, notes: list[str]) -> JSON:
    many = kind == "vipllava"
    default: Any = [-2, -5, -8, -11, 6] if many else -1 if kind == "llava_onevision" else -2
    layer = hf_config.listed(config, "vision_feature_layers" if many else "vision_feature_layer", default)
    usual = "full" if kind == "llava_onevision" else "default"
    strategy = usual if many else config.get("vision_feature_select_strategy", str) or usual
    if strategy not in ("default", "full"):
        raise config.wrong("vision_feature_select_strategy", f"is {strategy!r}, wanted 'default' or 'full'")
    vision = config.inside("vision_config")
    if strategy == "default" and vision.get("model_type") == "siglip_vision_model":
        notes.append("vision_feature_select_strategy: 'default' would drop a patch of a tower that has no class "
                     "token; all patches are kept")
    return hf_config.tower(vision, layer, strategy == "full")


def _projector(config: Fields, kind: str) -> JSON:
    config.must("projector_hidden_act", "gelu", "relu", "silu", default="gelu")
    norm = (config.number("projector_layernorm_eps") or 1e-5) if kind == "vipllava" else None
    return {"use": "mlp", "depth": 2, "act": config.get("projector_hidden_act", str, default="gelu"),
            "bias": config.get("multimodal_projector_bias", bool, default=True), "norm": norm}


def _image(config: Fields, kind: str, side: int) -> JSON:
    if kind not in ("llava_next", "llava_next_video", "llava_onevision"):
        return {"packer": {"use": "flat"}}
    one = kind == "llava_onevision"
    tiler: JSON = {"use": "anyres", "grids": None, "largest": None, "together": "square" if one else "tiles"}
    grids = _grids(config, side)
    if grids:
        rows, cols = grids[-1]
        series = [[r, c] for r in range(1, rows + 1) for c in range(1, cols + 1)]
        tiler |= {"largest": [rows, cols]} if grids == series else {"grids": grids}
    ratio = config.get("vision_aspect_ratio", str) or "anyres_max_9"
    most = ratio.removeprefix("anyres_max_")
    if one and not (ratio == "anyres" or most.isdigit()):
        raise config.wrong("vision_aspect_ratio", f"is {ratio!r}, wanted 'anyres' or 'anyres_max_' and a number")
    budget = float(most) if one and most.isdigit() else None
    return {"tiler": tiler if grids else {}, "packer": {"use": "anyres", "unpad": True, "newline": "row",
                                                        "budget": budget}}


def _grids(config: Fields, side: int) -> list[list[int]]:
    """Sizes in pixels (height, width) as grids of tiles."""
    found = []
    for point in config.get("image_grid_pinpoints", list) or []:
        if (not isinstance(point, list) or len(point) != 2
                or any(type(n) is not int or n < side or n % side for n in point)):
            raise config.wrong("image_grid_pinpoints", f"holds {point!r}, wanted [height, width], multiples of {side}")
        found.append([n // side for n in point])
    return found


def _images(folder: Path) -> Fields:
    """The image processor's fields, in the file of 5.x or in the older one."""
    new = folder / "processor_config.json"
    inner = read_json(new).get("image_processor")
    if isinstance(inner, dict):
        return Fields(inner, new, "image_processor.")
    old = folder / "preprocessor_config.json"
    return Fields(read_json(old), old)


def _looks(images: Fields, kind: str, side: int, notes: list[str]) -> JSON:
    """How pictures become tiles, and the statistics that they are normalised with."""
    if not images.data:
        return {}
    found = _statistics(images, kind)
    if kind in ("llava", "vipllava", "video_llava"):
        found["image"] = {"tiler": {"use": "square", "fit": fit(images, side)}}
    return found


def _statistics(images: Fields, kind: str) -> JSON:
    for key in ("do_rescale", "do_normalize", "do_resize", "do_convert_rgb"):
        images.must(key, True, None, default=True)
    images.must("resample", 3, None, default=3)  # bicubic
    told = {ours: images.get(theirs, list) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
    said = {key: [float(part) for part in value] for key, value in told.items() if value}
    if any(len(value) != 3 for value in said.values()):
        raise images.wrong("image_mean", "and image_std are three numbers each")
    return {"tower": said, **({"video": {"tower": said}} if kind == "video_llava" else {})} if said else {}


def fit(images: Fields, side: int) -> str:
    """How the processor makes a square."""
    size, edge = images.get("size", dict) or {}, images.get("crop_size", dict, int)
    kind = images.get("image_processor_type", str) or ""
    crops = images.get("do_center_crop", bool, default="height" not in size and not kind.startswith("Siglip"))
    wanted = [size.get("shortest_edge", side)] if crops else [size.get("height", side), size.get("width", side)]
    wanted += [edge] if isinstance(edge, int) and crops else list((edge or {}).values()) if crops else []
    if any(n != side for n in wanted):
        raise images.wrong("size", f"makes tiles of {wanted}, the tower sees {side}")
    if images.get("do_pad", bool, default=False):
        return "pad"
    return "crop" if crops else "squash"


def _clips(folder: Path, kind: str) -> list[tuple[str, JSON]]:
    """How many frames of a clip are seen, where the folder says so."""
    if kind not in ("llava_next_video", "llava_onevision", "video_llava"):
        return []
    new = folder / "processor_config.json"
    inner = read_json(new).get("video_processor")
    old = folder / "video_preprocessor_config.json"
    told = Fields(inner, new, "video_processor.") if isinstance(inner, dict) else Fields(read_json(old), old)
    frames = told.get("num_frames", int)
    return [(told.file.name, {"video": {"sampler": {"use": "uniform", "frames": frames}}})] if frames else []


def _talk(folder: Path, config: Fields) -> list[tuple[str, JSON]]:
    """Tokenizer, chat template, and what ends an answer."""
    words = Fields(read_json(folder / "tokenizer_config.json"), folder / "tokenizer_config.json")
    processor = Fields(read_json(folder / "processor_config.json"), folder / "processor_config.json")
    marks = {kind: processor.get(f"{kind}_token", str) or f"<{kind}>" for kind in ("image", "video")}
    layers: list[tuple[str, JSON]] = [("this folder", {"tokenizer": {"from": str(folder.resolve()), **marks}})]
    file, text = template(folder, words, processor)
    if text:
        layers.append((file, {"chat": {
            "use": "template", "text": text, **marks, "stops": _stops(folder, config, words),
            "bos": token(words, "bos_token"), "eos": token(words, "eos_token")}}))
    return layers


def template(folder: Path, words: Fields, processor: Fields) -> tuple[str, str]:
    """The chat template and the file that holds it: one of its three places, the newest first."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.name, read_text(jinja, "template_max_bytes")
    old = folder / "chat_template.json"
    for fields in (Fields(read_json(old), old), processor, words):
        found = fields.get("chat_template", str, list)
        if isinstance(found, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if found:
            return fields.file.name, str(found)
    return "", ""


def token(words: Fields, key: str) -> str:
    """A special token, written as text or as a mapping."""
    found = words.get(key, str, dict)
    return str(found.get("content", "")) if isinstance(found, dict) else found or ""


def _stops(folder: Path, config: Fields, words: Fields) -> list[str]:
    """The strings of the ids that end an answer."""
    file = folder / "generation_config.json"
    said = Fields(read_json(file), file) if file.is_file() else config.inside("text_config")
    ends = said.get("eos_token_id", int, list)
    ids = [ends] if isinstance(ends, int) else ends or []
    names = added(folder)
    found = [names[i] for i in ids if i in names]
    last = token(words, "eos_token")
    return found or ([last] if last and ids else [])


def added(folder: Path) -> dict[int, str]:
    """id -> string of the special and added tokens."""
    told = read_json(folder / "tokenizer.json", "tokenizer_max_bytes").get("added_tokens")
    return {one["id"]: one["content"] for one in told or [] if isinstance(one, dict) and {"id", "content"} <= set(one)}
