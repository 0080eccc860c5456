"""An imaginary picture and clip go through a model on the meta device: all shapes checked, all tokens counted.

There is no second formula for the number of tokens. What counts is the packer itself, run on tensors without values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PresetError, ShapeError
from ..types import Features, Layout

if TYPE_CHECKING:
    from ..contracts import VisionTower
    from .vlm import VLM, Stream

IMAGINED = (480, 640)  # height, width: a photograph's usual shape
FRAMES = 8


@dataclass
class Report:
    """What a rehearsal found out.

    parameters  section -> number of parameters of the published model, each tied tensor once
    unused      section -> how many of them are never run and therefore not built
    shapes      rows of (section, part, shape, note), in the order the data flows
    """

    name: str
    parameters: dict[str, int]
    unused: dict[str, int]
    shapes: list[tuple[str, str, str, str]]
    context: int
    vocab: int
    _model: VLM = field(repr=False)

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def tokens(self, height: int | None = None, width: int | None = None, *, frames: int | None = None,
               alone: bool = True) -> int:
        """Tokens of a picture of this size, or of a clip of so many frames."""
        if frames is not None:
            return count(self._model, Layout("video", height or IMAGINED[0], width or IMAGINED[1], frames=frames))
        if height is None or width is None:
            raise TypeError("tokens(height, width) for a picture, tokens(frames=n) for a clip")
        return count(self._model, self._model.stream("image").tiler.plan(height, width, alone))

    def weight_bytes(self, dtype: torch.dtype = torch.bfloat16) -> int:
        """Memory of the weights that are built, in bytes."""
        return (self.total - sum(self.unused.values())) * dtype.itemsize

    def cache_bytes(self, length: int, dtype: torch.dtype = torch.bfloat16) -> int:
        """Memory of the keys and values of one sequence of `length` tokens, in bytes."""
        layers = self._model.decoder.cache(1, length)
        return sum(layer.k.numel() + layer.v.numel() for layer in layers) * dtype.itemsize


def rehearse(model: VLM, name: str = "") -> Report:
    """Run the streams of a meta model once; raises ShapeError with the table up to the step that failed."""
    shapes: list[tuple[str, str, str, str]] = []
    try:
        for kind in ("image", "video"):
            if getattr(model, kind) is not None:
                _walk(model, kind, shapes)
    except (ShapeError, RuntimeError) as error:
        raise _misfit(name, shapes, error) from None
    parameters, unused = _parameters(model)
    return Report(name, parameters, unused, shapes, model.decoder.context, model.decoder.vocab, model)


def count(model: VLM, layout: Layout) -> int:
    """Tokens of one visual, by packing it on the meta device; remembered for each layout."""
    known: dict[Layout, int] = model.__dict__.setdefault("_counts", {})
    if layout not in known:
        if len(known) > 100_000:  # a cache is bounded
            known.clear()
        like = _glimpse(model, layout.kind)
        with torch.no_grad():
            tokens = like.tokens.new_empty(layout.tiles, *like.tokens.shape[1:])
            known[layout] = len(model.pack(layout.kind, like._replace(tokens=tokens), [layout])[0])
    return known[layout]


def _glimpse(model: VLM, kind: str) -> Features:
    """What the tower of a stream makes of as few tiles as it takes, on meta; asked once for both streams."""
    known: dict[VisionTower, Features] = model.__dict__.setdefault("_glimpses", {})
    _, tower = model.part(kind, "tower")
    if tower not in known:
        with torch.no_grad():
            tiles = getattr(tower, "frames", 1)
            known[tower] = tower(torch.empty(tiles, 3, tower.side, tower.side, dtype=torch.uint8, device="meta"))
    return known[tower]


def _walk(model: VLM, kind: str, shapes: list[tuple[str, str, str, str]]) -> None:
    stream = model.stream(kind)
    tower_at, tower = model.part(kind, "tower")
    projector_at, project = model.part(kind, "projector")
    layout = _imagine(stream, kind, getattr(tower, "frames", 1) > 1)

    def step(section: str, part: object, made: Callable[[], Any]) -> Any:
        shapes.append((section, name_of(part), "", ""))
        result = made()
        shapes[-1] = (section, name_of(part), *_describe(result))
        return result

    glimpse = step(tower_at, tower, lambda: _glimpse(model, kind))
    tokens = glimpse.tokens.new_empty(layout.tiles, *glimpse.tokens.shape[1:])
    shapes[-1] = (tower_at, name_of(tower), *_describe(glimpse._replace(tokens=tokens)))
    with torch.no_grad():
        step(projector_at, project, lambda: project(glimpse))
        packed = step(f"{kind}.packer", stream.packer,
                      lambda: model.pack(kind, glimpse._replace(tokens=tokens), [layout])[0])
    if packed.shape[1:] != (model.decoder.width,):
        raise ShapeError(f"gives tokens of width {tuple(packed.shape[1:])}, the decoder takes {model.decoder.width}")


def _imagine(stream: Stream, kind: str, exact: bool) -> Layout:
    """A picture, or a clip; where a tower is exact about the frames, as many as the sampler picks of a long one."""
    if kind == "image":
        return stream.tiler.plan(*IMAGINED, True)
    frames = len(stream.sampler.pick(1000, 25.0)) if exact and stream.sampler else FRAMES
    return Layout("video", *IMAGINED, frames=frames)


def name_of(part: object) -> str:
    """The file a part is written in is its name."""
    return part.__module__.rsplit(".", 1)[-1]


def _describe(result: Features | torch.Tensor) -> tuple[str, str]:
    if isinstance(result, torch.Tensor):
        return str(list(result.shape)), ""
    grid = f"{result.rows} x {result.cols}" if result.rows else "no rows and columns"
    return str(list(result.tokens.shape)), grid + (f" + {result.prefix} prefix" if result.prefix else "")


def _misfit(name: str, shapes: list[tuple[str, str, str, str]], error: Exception) -> ShapeError:
    section = shapes[-1][0] if shapes else "preset"
    what = error.what if isinstance(error, ShapeError) else str(error).split("\n")[0]
    rows = [f"  {s:<16} {p:<12} {shape:<22} {note}" for s, p, shape, note in shapes[:-1]]
    last = f"  {section:<16} {shapes[-1][1] if shapes else '':<12} {what}"
    kind = section.split(".")[0] if section.startswith(("image", "video")) else "image"
    hint = getattr(error, "hint", "") or f"change `{section}` or what feeds it"
    return ShapeError("\n".join([f"the {kind} stream does not fit together", *rows, last]),
                      where=f"preset {name}" if name else section, hint=hint)


def _parameters(model: VLM) -> tuple[dict[str, int], dict[str, int]]:
    built: dict[str, int] = {}
    for path, weight in model.named_parameters():  # tied tensors come once
        parts = path.split(".")
        section = ".".join(parts[:2]) if parts[0] in ("image", "video") else parts[0]
        built[section] = built.get(section, 0) + weight.numel()
    unused = {path: int(part.unused) for path, part in model.named_modules() if getattr(part, "unused", 0)}
    for path, number in unused.items():
        built[path] = built.get(path, 0) + number
    return built, unused


def check_fit(report: Report, ids: int) -> None:
    """The tokenizer's ids must have rows in the embedding."""
    if ids > report.vocab:
        raise PresetError(f"the tokenizer has {ids} ids, the decoder's embedding only {report.vocab} rows",
                          where=f"preset {report.name}", hint=f"set decoder.vocab to at least {ids}")
