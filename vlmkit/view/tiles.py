"""The picture as the model gets it: tiles in the order they are read, and what of them is thrown away."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from ..types import Layout
from .drawing import FAINT, INK, LOST, MARGIN, PAPER, TILE, Colour, badge, font, grow, hatch, legend, picture
from .trace import Trace, sheets

WIDTH, HEIGHT = 1500, 700  # of the whole panel; of its tallest sheet
GAP, TOP = 36, 62


def draw(tiles: Tensor, layout: Layout, trace: Trace | None) -> Image.Image:
    """uint8 [tiles, 3, side, side] -> one panel: the whole picture and its grid, or the frames of a clip."""
    laid = [picture(sheet) for sheet in sheets(tiles, layout)]
    if layout.kind == "video":
        return _frames(laid, trace)
    room = WIDTH - 2 * MARGIN - GAP * (len(laid) - 1)
    big = laid[-1]
    scale = min(HEIGHT / big.height, room * (0.68 if len(laid) > 1 else 0.6) / big.width)
    sizes = [(round(big.width * scale), round(big.height * scale))]
    if len(laid) > 1:
        side = min(room - sizes[0][0], sizes[0][1], 420)
        sizes.insert(0, (side, side))
    panel = Image.new("RGB", (WIDTH, TOP + max(h for _, h in sizes) + 56), PAPER)
    pen = ImageDraw.Draw(panel)
    x = MARGIN
    for number, (sheet, size) in enumerate(zip(laid, sizes, strict=True)):
        grid = (layout.rows, layout.cols) if number else (1, 1)
        pen.text((x, 18), _title(number, layout, grid), font=font(20), fill=INK)
        panel.paste(_sheet(sheet, size, trace, number), (x, TOP))
        _borders(pen, (x, TOP), size, grid, first=number)
        x += size[0] + GAP
    legend(pen, (MARGIN, panel.height - 36), _legend(trace))
    return panel


def _title(number: int, layout: Layout, grid: tuple[int, int]) -> str:
    if number:
        return f"{grid[0]} x {grid[1]} tiles"
    return f"the whole picture, {layout.height} high and {layout.width} wide"


def _sheet(sheet: Image.Image, size: tuple[int, int], trace: Trace | None, number: int) -> Image.Image:
    """Resized, with everything hatched that no token was made of."""
    shown = sheet.resize(size, Image.Resampling.LANCZOS)
    if trace is None or bool(trace.used[number].all()):
        return shown
    return hatch(shown, ~grow(trace.used[number], size[1], size[0]))


def _borders(pen: ImageDraw.ImageDraw, at: tuple[int, int], size: tuple[int, int], grid: tuple[int, int],
             first: int) -> None:
    high, wide = size[1] / grid[0], size[0] / grid[1]
    for row in range(grid[0]):
        for col in range(grid[1]):
            x, y = at[0] + col * wide, at[1] + row * high
            pen.rectangle((x, y, x + wide - 1, y + high - 1), outline=TILE, width=3)
            badge(pen, (x + 9, y + 9), str(first + row * grid[1] + col), size=18 if min(high, wide) > 60 else 11)


def _legend(trace: Trace | None) -> list[tuple[Colour, str]]:
    entries = [(TILE, "a tile, numbered in the order the tower sees it")]
    if trace is not None and not all(bool(used.all()) for used in trace.used):
        entries.append((LOST, "patches that are thrown away: no token is made of them"))
    return entries


def _frames(frames: list[Image.Image], trace: Trace | None) -> Image.Image:
    """A contact sheet."""
    cols = min(len(frames), 8 if len(frames) > 6 else 4)
    side = min((WIDTH - 2 * MARGIN - 10 * (cols - 1)) // cols, 300)
    rows = -(-len(frames) // cols)
    panel = Image.new("RGB", (WIDTH, TOP + rows * (side + 10) + 50), PAPER)
    pen = ImageDraw.Draw(panel)
    pen.text((MARGIN, 18), f"{len(frames)} frames", font=font(20), fill=INK)
    for number, frame in enumerate(frames):
        x, y = MARGIN + number % cols * (side + 10), TOP + number // cols * (side + 10)
        panel.paste(_sheet(frame, (side, side), trace, number), (x, y))
        _borders(pen, (x, y), (side, side), (1, 1), first=number)
    pen.text((MARGIN, panel.height - 36), "each frame is one tile", font=font(16), fill=FAINT)
    return panel
