"""Checks for what sees: tower, projector, packer, and the tiler and sampler before them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from random import Random
from typing import Any

import torch

from ..errors import ShapeError, VlmkitError
from ..types import Features, Layout
from .modules import answer
from .outcomes import Skipped, promise, want
from .subjects import COLS, OUT, ROWS, dice, to

SIZES = ((480, 640), (640, 480), (28, 28), (1, 1), (3, 200), (200, 3), (1000, 333))  # height, width
LAYOUTS = 24  # random ones, of each packer


def grid(features: Features) -> None:
    count = features.tokens.shape[1]
    want(features.tokens.ndim == 3, f"tokens are [tiles, tokens, width], got {list(features.tokens.shape)}")
    want(features.rows >= 0 and bool(features.rows) == bool(features.cols), "rows and columns, or neither")
    if features.rows:
        want(count == features.prefix + features.rows * features.cols,
             f"{count} tokens, but {features.prefix} + {features.rows} x {features.cols} are told")


@promise("tower")
def tells_its_shape(case: Any) -> None:
    """It has side, width, mean, std, blocks and unused, of the types that the contract says."""
    part = case.make()
    want(isinstance(part.side, int) and part.side > 0, f"side is {part.side!r}")
    want(isinstance(part.width, int) and isinstance(part.unused, int) and part.unused >= 0, "width, unused are counts")
    for name in ("mean", "std"):
        colour = getattr(part, name)
        want(isinstance(colour, tuple) and len(colour) == 3 and all(isinstance(c, float) for c in colour),
             f"{name} is three numbers, one for each colour, got {colour!r}")
    want(min(part.std) > 0, "pixels are divided by std")


@promise("tower")
def width_is_true(case: Any) -> None:
    """Its tokens are as wide as `width` says, and as many as rows, columns and prefix say."""
    part = case.make()
    with torch.no_grad():
        features = part(case.draw(part))
    want(features.tokens.shape[2] == part.width, f"width is {part.width}, tokens have {features.tokens.shape[2]}")
    want(len(features.tokens) == len(case.draw(part)), "another number of tiles")
    grid(features)


@promise("tower")
def blocks_repeat(case: Any) -> None:
    """`blocks` are modules of its own that all run: the unit of recomputation and sharding."""
    part = case.make()
    own, ran = set(part.modules()), set[int]()
    want(len(part.blocks), "there are none")
    want(all(block in own for block in part.blocks), "one is not a module of it")
    for at, block in enumerate(part.blocks):
        block.register_forward_hook(lambda *_, at=at: ran.add(at))
    answer(case, part, case.draw(part))
    want(len(ran) == len(part.blocks), f"{len(part.blocks) - len(ran)} of {len(part.blocks)} do not run")


@promise("tower")
def sees_every_patch(case: Any) -> None:
    """Another pixel in any corner makes other tokens, and so does black instead of white."""
    part = case.make()
    x = case.draw(part)
    before = answer(case, part, x)[0]
    for rows, cols in ((slice(0, 2), slice(0, 2)), (slice(-2, None), slice(-2, None))):
        other = x.clone()
        other[..., rows, cols] = 255 - other[..., rows, cols]
        want(not torch.equal(before, answer(case, part, other)[0]), "a corner of the tile makes no difference")
    flat = [answer(case, part, torch.full_like(x, value))[0] for value in (0, 255)]
    want(not torch.equal(*flat), "black and white tiles are the same to it")


@promise("projector")
def projects_to_the_decoder(case: Any) -> None:
    """However wide the tower, what leaves has the decoder's width, and tokens as rows and columns say."""
    part = case.make()
    with torch.no_grad():
        features = part(case.draw(part))
    want(features.tokens.shape[2] == OUT, f"out is {OUT}, tokens have {features.tokens.shape[2]}")
    want(features.tokens.shape[1] > 0, "no token is left")
    grid(features)


@promise("projector")
def reads_what_it_projects(case: Any) -> None:
    """Another picture makes other tokens."""
    part = case.make()
    want(not torch.equal(*(answer(case, part, case.draw(part, seed))[0] for seed in (0, 1))), "it does not look")


@promise("packer")
def names_its_separators(case: Any) -> None:
    """`separators` is a tuple of names, and it lays down what it was given under them."""
    part = case.make()
    want(isinstance(part.separators, tuple) and all(isinstance(s, str) for s in part.separators),
         f"expected a tuple of names, got {part.separators!r}")
    features, layouts, matrix, given = case.draw(part)
    before = answer(case, part, (features, layouts, matrix, given))
    for name in part.separators:
        after = answer(case, part, (features, layouts, matrix, {**given, name: given[name] + 1}))
        want(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"{name} is used nowhere")


@promise("packer")
def packs_to_the_decoder(case: Any) -> None:
    """One [tokens, width of the decoder] for each picture or clip, in order, however many come."""
    part = case.make()
    x = case.draw(part)
    want(x[1], "it takes no picture and no clip of those that were tried")
    out = answer(case, part, x)
    want(len(out) == len(x[1]), f"{len(x[1])} layouts, {len(out)} results")
    shapes = [list(t.shape) for t in out]
    want(all(len(s) == 2 and s[0] > 0 and s[1] == OUT for s in shapes), f"[tokens, {OUT}] for each, got {shapes}")


@promise("packer")
def counts_what_it_packs(case: Any) -> None:
    """For any layout it packs as many tokens as it counts on meta: their number follows from the layout alone."""
    part, meta = case.make(), case.make("meta")
    for layout in _layouts(Random(0)):
        counted = _packed(case, meta, layout, "meta", 0)
        for seed in (0, 1):
            packed = _packed(case, part, layout, "cpu", seed)
            want(packed == counted, f"{tuple(layout)}: counted {counted}, packed {packed}")


def _layouts(rng: Random) -> Iterator[Layout]:
    for _ in range(LAYOUTS):
        height, width = rng.randint(16, 900), rng.randint(16, 900)
        if rng.random() < 0.3:
            yield Layout("video", height, width, frames=rng.randint(1, 9))
        else:
            rows, cols = rng.choice([(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 3)])
            yield Layout("image", height, width, rows, cols)


def _packed(case: Any, part: Any, layout: Layout, device: str, seed: int) -> int | str:
    try:
        return len(answer(case, part, to(case.draw(part, seed, [layout]), device))[0])
    except ShapeError:
        return "refused"


@promise("packer")
def reads_every_tile(case: Any) -> None:
    """Every tile or frame makes a difference to what is packed."""
    part = case.make()
    features, layouts, matrix, given = case.draw(part)
    before = answer(case, part, (features, layouts, matrix, given))
    for tile in range(len(features.tokens)):
        tokens = features.tokens.clone()
        tokens[tile] = torch.randn(tokens.shape[1:], generator=dice(5))
        after = answer(case, part, (features._replace(tokens=tokens), layouts, matrix, given))
        want(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"tile {tile} is not looked at")


@promise("packer")
def takes_projectors_as_they_are(case: Any) -> None:
    """It calls `project`, and works with one that keeps the grid or refuses one that gives it up."""
    part = case.make()
    features, layouts, matrix, given = case.draw(part)
    calls = 0

    def queries(some: Features) -> Features:
        nonlocal calls
        calls += 1
        return Features((some.tokens @ matrix)[:, : ROWS * COLS // 2], 0, 0)

    try:
        with torch.no_grad():
            out = part(features, layouts, queries, given)
        want(all(t.shape[1] == OUT for t in out), "its width follows from something else than `project`")
    except ShapeError:
        pass
    want(calls, "it never calls `project`")


@promise("tiler")
def plans_as_it_cuts(case: Any) -> None:
    """`plan` gives a Layout from two numbers, and `cut` as many uint8 tiles of `side` as it says."""
    from PIL import Image

    tiler, given = case.make(), case.given()
    for height, width in SIZES:
        noise = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=dice(height)).numpy()
        for alone in (True, False):
            layout = tiler.plan(height, width, alone)
            want(isinstance(layout, Layout) and (layout.height, layout.width) == (height, width),
                 f"the layout of {height} x {width} is {layout!r}")
            tiles = tiler.cut(Image.fromarray(noise), layout)
            wanted = [layout.tiles, 3, given["side"], given["side"]]
            want(list(tiles.shape) == wanted and tiles.dtype == torch.uint8,
                 f"{height} x {width}: wanted uint8 {wanted}, got {tiles.dtype} {list(tiles.shape)}")
            want(torch.equal(tiles, tiler.cut(Image.fromarray(noise), layout)), "it cuts differently the second time")


@promise("sampler")
def picks_what_is_there(case: Any) -> None:
    """Of any clip it picks frames that are there, in order: at least one, and the same ones each time."""
    sampler = case.make()
    for frames in (1, 2, 3, 8, 30, 1000):
        for fps in (0.5, 24.0, 29.97):
            picked = sampler.pick(frames, fps)
            want(picked and all(isinstance(i, int) for i in picked), f"of {frames} frames: {picked!r}")
            want(picked == sorted(picked) and picked[0] >= 0 and picked[-1] < frames, f"of {frames}: {picked}")
            want(picked == sampler.pick(frames, fps), "it picks others the second time")


@promise("tiler", "sampler", "chat", "dataset")
def goes_to_workers(case: Any) -> None:
    """What `build` gives goes to another process and back: data workers hold it."""
    try:
        part = case.make()
    except VlmkitError as why:
        raise Skipped(f"EXAMPLE does not build here: {why.what}") from None
    pickle.loads(pickle.dumps(part))
