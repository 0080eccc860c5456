"""One class for every composition: encode what is seen, splice it into what is said, run the decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ..limits import MiB
from ..types import Batch, Features, KVCache, Layout, Visual
from .features import FeatureCache, usable

if TYPE_CHECKING:
    from ..contracts import Decoder, Packer, Projector, Tiler, VideoSampler, VisionTower

ROOM, CPU_ROOM = 1024 * MiB, 16 * MiB  # of what lies between a projector's layers; a CPU has it in its caches


class Stream(nn.Module):
    """The path of one modality. A tower or projector of its own stands in for the shared one."""

    def __init__(self, packer: Packer, tiler: Tiler, sampler: VideoSampler | None = None,
                 tower: VisionTower | None = None, projector: Projector | None = None) -> None:
        super().__init__()
        self.tower, self.projector, self.packer = tower, projector, packer
        self.tiler, self.sampler = tiler, sampler
        self.features = nn.Identity()  # observation points: what the tower saw, what reaches the decoder
        self.tokens = nn.Identity()


class VLM(nn.Module):
    """A vision-language model. Attributes carry the names of the preset's sections.

    tower, projector, decoder   shared parts
    image, video                streams, None when the model does not take that modality
    separators                  learned vectors of decoder width that packers lay between tokens
    """

    def __init__(self, tower: VisionTower, projector: Projector, decoder: Decoder, image: Stream | None,
                 video: Stream | None) -> None:
        super().__init__()
        self.tower, self.projector, self.decoder = tower, projector, decoder
        self.image, self.video = image, video
        names = sorted({name for s in (image, video) if s is not None for name in s.packer.separators})
        self.separators = self.draw_separators(names, decoder.width)
        self.kept: Callable[[VisionTower, Tensor], Features] | None = None  # of frozen towers, while a training lasts

    @staticmethod
    def draw_separators(names: list[str], width: int) -> nn.ParameterDict:
        """Like an embedding row of unit norm, as the released models start theirs."""
        return nn.ParameterDict({name: torch.randn(width) * width**-0.5 for name in names})

    def stream(self, kind: str) -> Stream:
        """The stream of a kind, or one clear error."""
        found: Stream | None = getattr(self, kind)
        if found is None:
            raise ShapeError(f"this model takes no {kind}", where=kind, hint=f"give the preset a section `{kind}`")
        return found

    def part(self, kind: str, name: Literal["tower", "projector"]) -> tuple[str, Any]:
        """What a stream uses, its own or the shared one: the section of the preset, and the module."""
        own = getattr(self.stream(kind), name)
        return (name, getattr(self, name)) if own is None else (f"{kind}.{name}", own)

    def forward(self, batch: Batch, cache: list[KVCache] | None = None) -> Tensor:
        """Hidden states, sequences laid end to end.   [total, width]"""
        x = self.splice(batch.ids, batch.slots, self.encode(batch.visuals))
        return self.decoder(x, batch.lens, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """[any, width] -> [any, vocab], float32"""
        return self.decoder.logits(hidden)

    def encode(self, visuals: list[Visual], cache: FeatureCache | None = None) -> list[Tensor]:
        """What each picture or clip is to the decoder, in the order given.   list of [tokens, width]

        cache  gives what it knows already, and keeps the rest; pixels may then still lie on the host
        """
        packed = cache.fill(self, visuals, self._encode) if cache and usable(self) else self._encode(visuals)
        return [self.stream(v.layout.kind).tokens(tokens) for v, tokens in zip(visuals, packed, strict=True)]

    def _encode(self, visuals: list[Visual]) -> list[Tensor]:
        seen: dict[int, Tensor] = {}
        for kind in ("image", "video"):
            chosen = [i for i, v in enumerate(visuals) if v.layout.kind == kind]
            if chosen:
                seen.update(zip(chosen, self._pack(kind, [visuals[i] for i in chosen]), strict=True))
        return [seen[i] for i in range(len(visuals))]

    def splice(self, ids: Tensor, slots: Tensor, seen: list[Tensor]) -> Tensor:
        """Embed the ids and lay the visual tokens over their slots.   [total], [visual] -> [total, width]"""
        x = self.decoder.embed(ids)
        given = sum(len(tokens) for tokens in seen)
        if given != len(slots):
            raise ShapeError(f"{len(slots)} slots but {given} visual tokens ({[len(t) for t in seen]}); "
                             "the batch was planned with another packer than the model's")
        return x.index_copy(0, slots, torch.cat(seen).to(x.dtype)) if seen else x

    def _pack(self, kind: str, visuals: list[Visual]) -> list[Tensor]:
        """One tower call for all tiles of a stream."""
        stream = self.stream(kind)
        _, tower = self.part(kind, "tower")
        pixels = torch.cat([v.pixels for v in visuals]) if len(visuals) > 1 else visuals[0].pixels
        see = partial(self.kept, tower) if self.kept else tower
        features: Features = see(pixels.to(next(tower.parameters(), pixels).device))
        features = features._replace(tokens=stream.features(features.tokens))
        return self.pack(kind, features, [v.layout for v in visuals])

    def pack(self, kind: str, features: Features, layouts: list[Layout]) -> list[Tensor]:
        """Tower features -> one [tokens, width] for each visual. What counts tokens on meta is this same call."""
        section, tower = self.part(kind, "tower")
        exact = getattr(tower, "frames", 1)
        for layout in layouts:
            if exact > 1 and layout.frames != exact:
                found, hint = ("a picture", "give pictures another tower") if kind == "image" else (
                    f"a clip of {layout.frames}", f"set video.sampler.frames={exact}")
                raise ShapeError(f"the tower sees exactly {exact} frames together; this is {found}",
                                 where=section, hint=hint)
        _, project = self.part(kind, "projector")
        return self.stream(kind).packer(features, layouts, partial(_project, project, self.decoder.width),
                                        dict(self.separators.items()))


def _project(project: Projector, width: int, features: Features) -> Features:
    """Some tiles after the others: between its layers a projector needs several times what it gives."""
    tokens = features.tokens
    room = (CPU_ROOM if tokens.device.type == "cpu" else ROOM) // (4 * width * tokens.itemsize * tokens.shape[1])
    if torch.is_grad_enabled() or tokens.is_meta or len(tokens) <= (most := max(1, room)):
        return project(features)
    return Features.collect((project(features._replace(tokens=some)) for some in tokens.split(most)), len(tokens))
