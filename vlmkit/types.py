"""The records that travel between floors. Plain tuples; shapes in the docstrings; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # the label of a token that is not learned


class Features(NamedTuple):
    """What a tower or a projector gives for a stack of tiles.

    tokens  [tiles, tokens, width]; prefix + rows * cols of them when there is a grid
    rows, cols  the patch grid, 0 x 0 when the tokens have no place in the picture (a resampler's queries)
    prefix  tokens before the patches, such as a class token
    """

    tokens: Tensor
    rows: int
    cols: int
    prefix: int = 0

    @property
    def map(self) -> Tensor:
        """The patches as a map, without prefix tokens.   [tiles, width, rows, cols]"""
        tiles, count, width = self.tokens.shape
        if not self.rows or count != self.prefix + self.rows * self.cols:
            raise ShapeError(f"needs rows and columns; got {count} tokens with a grid of {self.rows} x {self.cols} "
                             f"and {self.prefix} prefix tokens")
        return self.tokens[:, self.prefix :].transpose(1, 2).reshape(tiles, width, self.rows, self.cols)

    @classmethod
    def of_map(cls, grid: Tensor) -> Features:
        """[tiles, width, rows, cols] -> Features"""
        return cls(grid.flatten(2).transpose(1, 2), grid.shape[2], grid.shape[3])

    @classmethod
    def collect(cls, turns: Iterator[Features], tiles: int) -> Features:
        """Some tiles after the others to all of them, in memory of their own from the first turn on."""
        first = next(turns)
        tokens, done = first.tokens.new_empty(tiles, *first.tokens.shape[1:]), 0
        for turn in chain([first], turns):
            tokens[done : done + len(turn.tokens)] = turn.tokens
            done += len(turn.tokens)
        return first._replace(tokens=tokens)


class Layout(NamedTuple):
    """How one picture or clip was cut. Integers only; the same everywhere, before and after the pixels."""

    kind: Literal["image", "video"]
    height: int  # of the source, in pixels
    width: int
    rows: int = 0  # tile grid; 0 x 0 means the whole picture is the only tile
    cols: int = 0
    frames: int = 0

    @property
    def tiles(self) -> int:
        """Frames for a clip, 1 + rows * cols for a picture: tile 0 is the whole picture, then row by row."""
        return self.frames if self.kind == "video" else 1 + self.rows * self.cols


class Visual(NamedTuple):
    """One picture or clip, cut.   pixels uint8 [tiles, 3, side, side]; the tower normalises, nobody else"""

    pixels: Tensor
    layout: Layout


class Sample(NamedTuple):
    """One conversation as numbers, before it is laid into a row; int64 throughout.

    ids     [length]
    slots   [visual]  positions in ids
    labels  [length]
    """

    ids: Tensor
    slots: Tensor
    visuals: list[Visual]
    labels: Tensor | None = None


class Batch(NamedTuple):
    """Sequences laid end to end. There is no padding and no mask.

    ids      [total]       token ids; at a slot the id is a placeholder that will be overwritten
    lens     [sequences]   how many of them belong to each sequence; int64, stays on the host
    slots    [visual]      positions in `ids` that pictures and clips fill, in reading order
    visuals  list[Visual]  in reading order
    labels   [total]       next-token labels, -100 where nothing is learned; None when generating
                           (labels[t] is ids[t] where it is learned: the shift happens in the loss)
    """

    ids: Tensor
    lens: Tensor
    slots: Tensor
    visuals: list[Visual]
    labels: Tensor | None = None

    def to(self, device: Any) -> Batch:
        pixels = {id(v.pixels): v.pixels.to(device) for v in self.visuals}  # what was one stays one
        visuals = [Visual(pixels[id(v.pixels)], v.layout) for v in self.visuals]
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.ids.to(device), self.lens, self.slots.to(device), visuals, labels)

    def sequences(self) -> list[Tensor]:
        """The ids of each sequence.   list of [its length]"""
        return list(self.ids.split(self.lens.tolist()))


class KVCache(NamedTuple):
    """Keys and values already seen by one layer; one row for each sequence of the batch.

    k, v  [rows, capacity, kv_heads, head]
    lens  [rows]  how many positions are filled; int64 on the host, one tensor shared by all layers.
          The decoder advances it once, after its last block; attention backends only read it.
    """

    k: Tensor
    v: Tensor
    lens: Tensor


class FixedCache(NamedTuple):
    """What one layer's attention looks at when every row gets a token at most, and all shapes stay.

    k, v  [rows, keys, kv_heads, head]
    at    [rows]              where the new token goes; int64 on the device
    live  [rows, 1, 1]        whether there is one; what a resting row holds stays
    mask  [rows, 1, 1, keys]  what is added to scores: 0, or -inf
    """

    k: Tensor
    v: Tensor
    at: Tensor
    live: Tensor
    mask: Tensor


class Seen(NamedTuple):
    """The place of one visual in a conversation."""

    index: int  # type: ignore[assignment]  # among all visuals of the conversation, in reading order
    kind: Literal["image", "video"] = "image"


class Said(NamedTuple):
    """Somebody's words. A special string inside them is plain text, whoever wrote it."""

    text: str
    learned: bool = False  # words the model is trained to say


class Learned(NamedTuple):
    """Text of the template that the model is trained to say, such as the closing `</s>`."""

    text: str


class Turn(NamedTuple):
    role: Literal["system", "user", "assistant"]
    content: Sequence[str | Seen]


class Described(NamedTuple):
    """What a folder of weights says about itself: the sections of a preset.

    base    the shipped preset it is nearest to, whose sections stand where the folder says nothing; "" for a bare
            part, which fills only its own section
    layers  (file, sections it decides), later ones over earlier ones
    notes   stored values that are known to be wrong, and what was done about them
    """

    base: str
    layers: tuple[tuple[str, dict[str, Any]], ...]
    notes: tuple[str, ...] = ()


class Rule(NamedTuple):
    """Their tensor name <-> our tensor name; `{i}` is a number, `{p}` the rest. Ours is None: known and not kept.

    how  same | stack (several of theirs are one of ours, joined on axis 0) | squeeze (theirs lacks our leading ones)
         | twice (theirs is stored two times, and must be the same)
    """

    theirs: str | tuple[str, ...]
    ours: str | None
    how: Literal["same", "stack", "squeeze", "twice"] = "same"


class Dressed(NamedTuple):
    """What a format asks of an export beside the tensors its rules name.

    extra  their name -> a tensor that their layout wants and ours never had
    rows   of the embedding and the head; more than the decoder has where tokens were added
    notes  what the user of the export should know
    """

    extra: dict[str, Tensor]
    rows: int
    notes: tuple[str, ...] = ()


class Generation(NamedTuple):
    """What one conversation got as its answer."""

    text: str
    ids: list[int]
    logprobs: list[float]
    prompt_tokens: int
    visual_tokens: int
    finish: Literal["stop", "length", "cancelled", "deadline"]


def reach(owner: Any, path: str) -> Any:
    """What lies at a dotted path of attributes; None where it ends before."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner
