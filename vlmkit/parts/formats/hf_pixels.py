"""Image and video processors of transformers: how pictures become tiles, with what statistics, and which frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import JSON, Fields, read_json

ANYRES = ("llava_next", "llava_next_video", "llava_onevision")
CLIPS = ("llava_next_video", "llava_onevision", "video_llava")
USUAL = {"llava": "LlavaImageProcessor", "vipllava": "CLIPImageProcessor", "llava_next": "LlavaNextImageProcessor",
         "llava_next_video": "LlavaNextImageProcessor", "llava_onevision": "LlavaOnevisionImageProcessor",
         "video_llava": "VideoLlavaImageProcessor"}  # where the folder names none
WHOLE = ("Siglip", "LlavaOnevision")  # processors that do not crop unless they are told to
OPENAI: JSON = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF: JSON = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PINPOINTS = {"llava_onevision": [[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)],
             "llava_next": NEXT, "llava_next_video": NEXT}


def processors(folder: Path, kind: str) -> tuple[Fields, Fields]:
    """The fields of the image and of the video processor: in one file since 5.x, in one each before. A folder without
    a video processor has its frames made by the other."""
    new = folder / "processor_config.json"
    told = read_json(new)

    def either(what: str, old: str) -> Fields:
        inner = told.get(what)
        found = Fields(inner, new, f"{what}.") if isinstance(inner, dict) else Fields.of(folder / old)
        found.defaults = {"image_processor_type": USUAL[kind]}
        return found

    images = either("image_processor", "preprocessor_config.json")
    clips = either("video_processor", "video_preprocessor_config.json")
    return images, clips if clips.data else images


def pictures(images: Fields, config: Fields, kind: str, side: int) -> JSON:
    """Sections of what the image processor says."""
    if not images.data:
        return {}
    found: JSON = {"tower": statistics(images)}
    if kind not in ANYRES:
        return found | {"image": {"tiler": {"use": "square", "fit": fit(images, side)}}}
    _edges(images, side)
    told = images.get("image_grid_pinpoints", list)
    if told and grids(images, told, side) != grids(config, pinpoints(config, kind), side):
        raise images.wrong("image_grid_pinpoints", f"is another list than that of {config.file.name}")
    return found


def clips(videos: Fields, images: Fields, kind: str, side: int, notes: list[str]) -> JSON:
    """Sections of what the video processor says."""
    if kind not in CLIPS or not videos.data:
        return {}
    seen, own = statistics(images), statistics(videos)
    video: JSON = {"tiler": {"use": "square", "fit": fit(videos, side)}}
    if kind == "video_llava":
        video["tower"] = own
    elif own and own != seen:
        if own.get("mean") != OPENAI["image_mean"]:
            raise videos.wrong("image_mean", f"and image_std are {own}, those of pictures {seen}; the tower has one")
        notes.append(f"{videos.file.name}: {videos.at}image_mean is CLIP's, which is what transformers' class has "
                     "when nobody says another; frames are normalised as pictures are")
    frames, rate = videos.get("num_frames", int), videos.number("fps")
    if frames and rate:
        raise videos.wrong("fps", "and num_frames exclude each other")
    if frames or rate:
        video["sampler"] = {"use": "uniform", "frames": frames} if frames else {"use": "fps", "fps": rate}
    return {"video": video}


def statistics(fields: Fields) -> JSON:
    """Mean and deviation: what is said, or what the class means. OneVision's means CLIP's, which nobody trained with:
    there it is the tower's own. Refuses arithmetic that the towers do not do.
    """
    for key in ("do_rescale", "do_normalize", "do_resize"):
        if not fields.get(key, bool, default=True):  # null is no, too
            raise fields.wrong(key, f"is {fields.get(key)!r}; vlmkit's pictures are resized, scaled and normalised")
    fields.must("resample", 3, default=3)  # bicubic
    factor = fields.number("rescale_factor")
    if factor is not None and abs(factor * 255 - 1) > 1e-6:
        raise fields.wrong("rescale_factor", f"is {factor!r}, wanted 1 / 255")
    found: JSON = {}
    usual = {} if _name(fields).startswith("LlavaOnevision") else HALF if _name(fields).startswith("Siglip") else OPENAI
    for ours, key, least in (("mean", "image_mean", 0.0), ("std", "image_std", 1e-6)):
        told: Any = fields.get(key, list, int, float, default=usual.get(key))
        if told is None:
            continue
        three = told if isinstance(told, list) else [told] * 3
        if len(three) != 3 or any(type(n) not in (int, float) or not least <= n <= 1e3 for n in three):
            raise fields.wrong(key, f"is {told!r}, wanted three numbers" + " above 0" * (least > 0))
        found[ours] = [float(part) for part in three]
    return found


def fit(fields: Fields, side: int) -> str:
    """How the processor makes a square."""
    exact, crops = _edges(fields, side)
    if not exact and not crops:
        raise fields.wrong("do_center_crop", "is not true, so pictures stay in their own shape; vlmkit's are squares")
    if fields.get("do_pad", bool) and _name(fields) == "LlavaImageProcessor":  # others only pad a batch
        return "pad"
    return "squash" if exact else "crop"


def _edges(fields: Fields, side: int) -> tuple[bool, bool]:
    """Does it resize to an exact size, does it crop? All its sizes have to be the tower's."""
    size = _size(fields, "size", "shortest_edge")
    exact = "height" in size
    crops = bool(fields.get("do_center_crop", bool, default=not _name(fields).startswith(WHOLE)))
    wanted = [*size.values(), *(_size(fields, "crop_size", "height").values() if crops else ())]
    if any(n != side for n in wanted):
        raise fields.wrong("size" if any(n != side for n in size.values()) else "crop_size",
                           f"makes tiles of {' x '.join(map(str, wanted))} pixels, the tower sees {side} x {side}")
    return exact, crops


def _size(fields: Fields, key: str, single: str) -> JSON:
    """One number, or a mapping. `single`: what the number means"""
    told = fields.get(key, int, dict)
    size: JSON = {single: told} if isinstance(told, int) else told or {}
    known = {name: n for name, n in size.items() if n is not None}
    if set(known) not in ({"height", "width"}, {single}, set()) or any(type(n) is not int for n in known.values()):
        raise fields.wrong(key, f"is {told!r}, wanted a number, a shortest_edge, or height and width")
    return known


def _name(fields: Fields) -> str:
    """The processor's class, whatever computes it."""
    key = "video_processor_type" if fields.get("video_processor_type", str) else "image_processor_type"
    name: str = fields.get(key, str) or fields.defaults["image_processor_type"]
    return name.removesuffix("Fast").removesuffix("Pil")


def pinpoints(config: Fields, kind: str) -> list[list[int]]:
    found: list[list[int]] = config.get("image_grid_pinpoints", list) or PINPOINTS[kind]
    return found


def grids(fields: Fields, points: list[list[int]], side: int) -> list[list[int]]:
    """Sizes in pixels (height, width) as grids of tiles."""
    for point in points:
        if (not isinstance(point, list) or len(point) != 2
                or any(type(n) is not int or n < side or n % side for n in point)):
            raise fields.wrong("image_grid_pinpoints", f"holds {point!r}, wanted [height, width], multiples of {side}")
    return [[n // side for n in point] for point in points]
