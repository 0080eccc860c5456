"""What each kind of part promises. A part module holds `Config`, `build`, `EXAMPLE` and a docstring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from .types import Described, Dressed, Features, KVCache, Layout, Learned, Rule, Said, Seen, Turn

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from .compose.preset import Preset
    from .model.vlm import VLM

__all__ = ["AttentionBackend", "ChatTemplate", "CheckpointFormat", "Decoder", "Packer", "PartConfig", "PartOf",
           "Projector", "Tiler", "VideoSampler", "VisionTower"]


class PartConfig(BaseModel):
    """The fields of a part. Strict, frozen, no unknown names; it can build what it describes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    use: str = ""  # the part's name, filled in when a preset is bound
    builder: ClassVar[Callable[..., Any] | None] = None  # set by `registry.add`; else `build` beside the class

    def build(self, **given: Any) -> Any:
        """Make the part. `given` is what its kind receives, such as `width` and `out` for a projector."""
        make = type(self).builder or sys.modules[type(self).__module__].build
        return make(self, **given)


class PartOf(NamedTuple):
    """Marks a field that holds a part: `tower: Annotated[PartConfig, PartOf("tower")]`."""

    kind: str


class VisionTower(Protocol):
    """An nn.Module.   build(config)

    side    pixels along one edge of a tile
    width   of its tokens (of all layers it concatenates)
    mean, std  its own normalisation, of pixels scaled to 0..1; the mean is also the tiler's fill colour
    blocks  what repeats: the unit of recomputation and sharding
    unused  parameters of the published tower that are never run and were therefore not built
    frames  (may be left out) of a clip, for a tower that sees them together: it gets whole clips of that length
    """

    side: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blocks: Sequence[nn.Module]
    unused: int

    def __call__(self, pixels: Tensor) -> Features:
        """uint8 [tiles, 3, side, side] -> tokens [tiles, prefix + rows * cols, width]"""
        ...


class Projector(Protocol):
    """An nn.Module.   build(config, *, width, out): tower width, decoder width"""

    def __call__(self, features: Features) -> Features:
        """Width of the tower -> width of the decoder; may change the number of tokens and the grid."""
        ...


class Packer(Protocol):
    """A function or nn.Module.   build(config, *, width, out): width before and after `project`"""

    separators: tuple[str, ...]  # the learned vectors it uses, such as ("newline",)

    def __call__(self, features: Features, layouts: list[Layout], project: Projector,
                 separators: Mapping[str, Tensor]) -> list[Tensor]:
        """Tiles of all visuals of one stream, in order -> one [tokens, decoder width] for each visual.

        It calls `project` itself, so pooling before or after projection is its own line of code. The number of
        tokens may depend on the layout, never on the values: it is counted on the meta device.
        """
        ...


class Decoder(Protocol):
    """An nn.Module.   build(config, *, attention): an AttentionBackend

    `unquantized` may name layers inside the blocks, such as a router, that stay whole when the decoder is quantised.
    `steady` may be False: a position's key depends on the sequence's length, so no part of it is computed ahead.
    `brief` may be True: called with `ends=True`, it gives each sequence's last position alone, [sequences, width].
    `fixed()` may give a step that can be compiled, as `vlmkit.parts.decoders.fixed` has it, or None.
    """

    width: int
    vocab: int  # rows of the embedding
    context: int  # longest sequence
    blocks: Sequence[nn.Module]

    def embed(self, ids: Tensor) -> Tensor:
        """[total] -> [total, width]"""
        ...

    def cache(self, rows: int, capacity: int) -> list[KVCache]:
        """An empty cache, one for each block, on the device and in the dtype of the weights."""
        ...

    def __call__(self, x: Tensor, lens: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """[total, width] -> [total, width], normalised; positions follow from lens and cache.

        With a cache there is one entry of `lens` for each of its rows; 0 leaves a row alone.
        """
        ...

    def logits(self, x: Tensor) -> Tensor:
        """[any, width] -> [any, vocab], float32"""
        ...


class AttentionBackend(Protocol):
    """Causal self-attention over sequences laid end to end.   build(config)

    `unfit(device, dtype, head)` may tell why it cannot serve there, or None; then the name is refused before weights
    are read. `fixed(q, k, v, cache)` may serve a FixedCache; without it steps of this backend are not compiled.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor, cache: KVCache | None = None,
                 window: int | None = None) -> Tensor:
        """q [total, heads, head]   k, v [total, kv_heads, head] -> [total, heads, head]

        With a cache: writes k and v behind each row's `lens`, then looks at old and new. `window` is how many
        positions back a query sees, itself among them.
        """
        ...


class ChatTemplate(Protocol):
    """build(config)"""

    stops: tuple[str, ...]  # strings that end an answer

    def render(self, turns: list[Turn], reply: bool) -> list[str | Said | Seen | Learned]:
        """Pieces in order: `str` is template text, `Seen` the place of a visual; `reply` opens the answer."""
        ...


class Tiler(Protocol):
    """The image processor of a stream.   build(config, *, side, fill): both from the tower"""

    def plan(self, height: int, width: int, alone: bool) -> Layout:
        """Needs no pixels. `alone` is false when several pictures share the conversation."""
        ...

    def cut(self, picture: Image, layout: Layout) -> Tensor:
        """An RGB picture -> uint8 [tiles, 3, side, side]"""
        ...


class VideoSampler(Protocol):
    """build(config)"""

    def pick(self, frames: int, fps: float) -> list[int]:
        """Which of a clip's frames to decode, in order; an index may come twice."""
        ...


class CheckpointFormat(Protocol):
    """build(config).   A layout of somebody else's: what its files say, and its tensor names beside ours."""

    def recognise(self, folder: Path) -> bool:
        """Whether a folder is in this layout; looks at file names and configurations, never at weights."""
        ...

    def describe(self, folder: Path) -> Described:
        """The folder's own files as sections of a preset."""
        ...

    def rules(self, preset: Preset, names: Collection[str]) -> list[Rule]:
        """Their names <-> ours, first match wins. `names` are the stored ones; there are none when exporting."""
        ...

    def dress(self, folder: Path, preset: Preset, model: VLM) -> Dressed:
        """Write the files beside the weights that make an export at home there; `tokenizer.json` lies in the folder.

        Raises PresetError that names the part which has no home in this layout, and the nearest that has one.
        """
        ...


class Dataset(Protocol):
    """build(config).   Conversation i is the same whenever it is asked for, in any process.

    `place(i)` may tell where it stands, such as file:line; `ordered` may be True: the order of the numbers is a recipe
    of its own, and whoever trains keeps it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, at: int) -> list[dict[str, Any]]:
        """A conversation as `processor` takes it; DataError where it is bad, IndexError behind the last."""
        ...


# build(config) -> (answers, all right answers to each) -> score. One with `choices` is given not what the model says
# but the likeliest of these, or of those that the question brings where there are none.
Metric = Callable[[list[str], list[list[str]]], float]
