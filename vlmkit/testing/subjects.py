"""One part under examination: how its kind is built, what goes in, and how that is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..compose.bind import bind_part
from ..contracts import PartConfig
from ..model.assemble import backend
from ..registry import Entry
from ..types import Features, Layout

WIDTH, OUT, ROWS, COLS = 16, 32, 6, 6  # what the neighbours of a projector or packer are imagined to be
NOISE = 0.02  # on top of what is drawn: a weight that starts at 0 would hide what it does


class Subject:
    """A part of any kind, by its EXAMPLE."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @property
    def config(self) -> PartConfig:
        return bind_part(self.entry, self.entry.example)

    def given(self) -> dict[str, Any]:
        """What `build` receives beside the config."""
        return {"side": 28, "fill": (0.5, 0.4, 0.3)} if self.entry.kind == "tiler" else {}

    def make(self, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """Build it, with every weight drawn from `seed`."""
        config = self.config
        with plain(dtype), torch.device(device):
            torch.manual_seed(seed)
            part = config.build(**self.given())
            if isinstance(part, nn.Module) and device != "meta":
                with torch.no_grad():
                    for weight in part.parameters():
                        weight.add_(torch.randn_like(weight), alpha=NOISE)
        return part.eval() if isinstance(part, nn.Module) else part


class Model(Subject, ABC):
    """A kind that takes tensors and gives tensors. Whole numbers stay on the host."""

    differentiable = True  # with respect to what comes in

    @abstractmethod
    def draw(self, part: Any, seed: int = 0) -> Any:
        """Something to run it on, on the host."""

    @abstractmethod
    def run(self, part: Any, x: Any) -> list[Tensor]:
        """What it makes of that."""

    @abstractmethod
    def single(self, part: Any, x: Any) -> Iterator[tuple[Any, Callable[[list[Tensor]], list[Tensor]]]]:
        """Each thing of a batch by itself, and which of the batch's results it must equal."""


class Tower(Model):
    differentiable = False  # pixels are bytes

    def draw(self, part: Any, seed: int = 0) -> Any:
        shape = (2 * getattr(part, "frames", 1), 3, part.side, part.side)
        return torch.randint(256, shape, dtype=torch.uint8, generator=dice(seed))

    def run(self, part: Any, x: Any) -> list[Tensor]:
        return [part(x).tokens]

    def single(self, part: Any, x: Any) -> Iterator[tuple[Any, Any]]:
        frames = getattr(part, "frames", 1)
        for at in range(0, len(x), frames):
            yield x[at : at + frames], lambda out, at=at: [out[0][at : at + frames]]


class Projector(Model):
    def given(self) -> dict[str, Any]:
        return {"width": WIDTH, "out": OUT}

    def draw(self, part: Any, seed: int = 0) -> Any:
        return Features(torch.randn(3, ROWS * COLS, WIDTH, generator=dice(seed)), ROWS, COLS)

    def run(self, part: Any, x: Any) -> list[Tensor]:
        return [part(x).tokens]

    def single(self, part: Any, x: Any) -> Iterator[tuple[Any, Any]]:
        for at in range(len(x.tokens)):
            yield x._replace(tokens=x.tokens[at : at + 1]), lambda out, at=at: [out[0][at : at + 1]]


class Packer(Projector):
    """Behind a linear projector, with pictures, tiled pictures and clips in one call where it takes them."""

    def draw(self, part: Any, seed: int = 0, layouts: list[Layout] | None = None) -> Any:
        layouts = layouts or list(self.taken(part))
        tiles = sum(layout.tiles for layout in layouts)
        tokens = torch.randn(tiles, ROWS * COLS, WIDTH, generator=dice(seed))
        vectors = {name: torch.randn(OUT, generator=dice(7)) for name in part.separators}
        return Features(tokens, ROWS, COLS), layouts, torch.randn(WIDTH, OUT, generator=dice(8)), vectors

    def taken(self, part: Any) -> Iterator[Layout]:
        """Layouts of every sort that it packs; one it refuses, it refuses on meta."""
        for layout in (Layout("image", 60, 80), Layout("image", 90, 300, 1, 3), Layout("image", 300, 90, 2, 2),
                       Layout("video", 60, 80, frames=4)):
            if layout.tiles and self.takes(part, layout):
                yield layout

    def takes(self, part: Any, layout: Layout) -> bool:
        from ..errors import ShapeError

        try:
            self.run(part, self.draw(part, 0, [layout]))
        except ShapeError:
            return False
        return True

    def run(self, part: Any, x: Any) -> list[Tensor]:
        features, layouts, matrix, separators = x

        def project(some: Features) -> Features:
            return some._replace(tokens=some.tokens @ matrix)

        packed: list[Tensor] = part(features, layouts, project, separators)
        return packed

    def single(self, part: Any, x: Any) -> Iterator[tuple[Any, Any]]:
        features, layouts, matrix, separators = x
        own = features.tokens.split([layout.tiles for layout in layouts])
        for at, (tokens, layout) in enumerate(zip(own, layouts, strict=True)):
            alone = features._replace(tokens=tokens), [layout], matrix, separators
            yield alone, lambda out, at=at: [out[at]]


class Decoder(Model):
    def given(self) -> dict[str, Any]:
        return {"attention": backend("sdpa")}

    def draw(self, part: Any, seed: int = 0) -> Any:
        ids = torch.randint(part.vocab, (9,), generator=dice(seed))
        return torch.randn(9, part.width, generator=dice(seed)), ids, torch.tensor([4, 5])

    def run(self, part: Any, x: Any) -> list[Tensor]:
        shown, ids, lens = x
        hidden = part(part.embed(ids.to(shown.device)) + shown, lens)
        return [hidden, part.logits(hidden)]

    def single(self, part: Any, x: Any) -> Iterator[tuple[Any, Any]]:
        shown, ids, lens = x
        for at, count in ((0, int(lens[0])), (int(lens[0]), int(lens[1]))):
            many = slice(at, at + count)
            yield (shown[many], ids[many], lens.new_tensor([count])), lambda out, many=many: [one[many] for one in out]


SUBJECTS: dict[str, type[Subject]] = {"tower": Tower, "projector": Projector, "packer": Packer, "decoder": Decoder}


def subject(entry: Entry) -> Any:
    return SUBJECTS.get(entry.kind, Subject)(entry)


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def plain(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """A default dtype for a while; the caller's random state is left as it was."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)


def floats(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the floating tensors of a nest of tuples, lists and mappings."""
    return tree_map_only(Tensor, lambda t: change(t) if t.is_floating_point() else t, x)


def to(x: Any, device: str) -> Any:
    """All but ids and lengths, which stay on the host."""
    return tree_map_only(Tensor, lambda t: t if t.dtype == torch.int64 else t.to(device), x)


def tensors(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(x)[0] if isinstance(leaf, Tensor)]
