"""The tokens a visual becomes, laid out row by row in reading order, each in the colour of what it saw."""

from __future__ import annotations

from itertools import groupby

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..types import Layout
from .drawing import FAINT, INK, LINE, MARGIN, NEWLINE, PAPER, PREFIX, Colour, font, legend
from .tiles import GAP, TOP, WIDTH
from .trace import Token, Trace, sheets

LABEL = 58  # room for the number of a row's first token


class Row(list[Token]):
    """Tokens that lie on one line; `first` is the number of the first of them."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first


def lines(trace: Trace) -> list[Row]:
    """Cut the row of tokens where a line of the picture ends."""
    found: list[Row] = []
    for number, token in enumerate(trace.tokens):
        before = trace.tokens[number - 1] if number else None
        if before is None or _breaks(before, token):
            found.append(Row(number))
        found[-1].append(token)
    return found


def _breaks(before: Token, token: Token) -> bool:
    if token.kind == "separator":
        return False
    return before.kind != token.kind or before.sheet != token.sheet or abs(before.y - token.y) > 1e-3


def draw(tiles: Tensor, layout: Layout, trace: Trace) -> Image.Image:
    """One block for each sheet.   tiles uint8 [tiles, 3, side, side]"""
    rows, cols = trace.used[0].shape  # the first sheet is one tile
    patches = F.adaptive_avg_pool2d(tiles.float(), (rows, cols))
    colours = [sheet.permute(1, 2, 0).tolist() for sheet in sheets(patches, layout)]
    blocks = [list(block) for _, block in groupby(lines(trace), key=lambda row: row[0].sheet)]
    cell = _cell(blocks)
    titles = [_title(block, layout) for block in blocks]
    spots, height = _flow(blocks, titles, cell)
    panel = Image.new("RGB", (WIDTH, height + 52), PAPER)
    pen = ImageDraw.Draw(panel)
    for block, title, (x, y) in zip(blocks, titles, spots, strict=True):
        pen.text((x, y - 30), title, font=font(16), fill=INK)
        for line, row in enumerate(block):
            _line(pen, row, colours, (x, y + line * cell), cell, numbered=line % max(1, round(22 / cell)) == 0)
    legend(pen, (MARGIN, panel.height - 36), _legend(trace))
    return panel


def _cell(blocks: list[list[Row]]) -> int:
    """The size of one token, so that the widest blocks of one line fill the panel."""
    widths = [max(len(row) for row in block) for block in blocks]
    side_by_side = min(len(blocks), 4)
    room = WIDTH - 2 * MARGIN - side_by_side * LABEL - (side_by_side - 1) * GAP
    return max(3, min(40, room // max(sum(widths[i : i + side_by_side]) for i in range(0, len(blocks), side_by_side))))


def _flow(blocks: list[list[Row]], titles: list[str], cell: int) -> tuple[list[tuple[int, int]], int]:
    """Upper left corner of each block, from left to right, then down; and where all of it ends."""
    spots: list[tuple[int, int]] = []
    x, y, lowest = MARGIN, TOP, 0
    for block, title in zip(blocks, titles, strict=True):
        wide = max(max(len(row) for row in block) * cell + LABEL, round(font(16).getlength(title)))
        if spots and x + wide > WIDTH - MARGIN:
            x, y = MARGIN, lowest + 48
        spots.append((x, y))
        lowest = max(lowest, y + len(block) * cell)
        x += wide + GAP
    return spots, lowest


def _line(pen: ImageDraw.ImageDraw, row: Row, colours: list[list[list[list[float]]]], at: tuple[int, int], cell: int,
          numbered: bool) -> None:
    x, y = at
    if numbered:
        pen.text((x + LABEL - 8, y + cell / 2), str(row.first), font=font(11), fill=FAINT, anchor="rm")
    pen.rectangle((x + LABEL - 1, y - 1, x + LABEL + len(row) * cell - 1, y + cell - 1), fill=LINE)
    for number, token in enumerate(row):
        left = x + LABEL + number * cell
        pen.rectangle((left, y, left + cell - 2, y + cell - 2), fill=_colour(token, colours))


def _colour(token: Token, colours: list[list[list[list[float]]]]) -> Colour:
    if token.kind != "patch":
        return NEWLINE if token.kind == "separator" else PREFIX
    sheet = colours[token.sheet]
    red, green, blue = sheet[min(round(token.y), len(sheet) - 1)][min(round(token.x), len(sheet[0]) - 1)]
    return int(red), int(green), int(blue)


def _title(block: list[Row], layout: Layout) -> str:
    sheet = block[0][0].sheet
    name = f"frame {sheet}" if layout.kind == "video" else "tiles" if sheet else "whole picture"
    return f"{name}: {sum(map(len, block))} tokens{_shape(block)}"


def _shape(block: list[Row]) -> str:
    """How the sum comes about, when all lines are alike."""
    lines = [row for row in block if row[0].kind == "patch"]
    patches = {sum(token.kind == "patch" for token in row) for row in lines}
    others = sum(map(len, block)) - sum(patches) * len(lines)
    if len(patches) != 1:
        return ""
    if others == len(lines) == len(block):
        return f" = {len(lines)} x ({patches.pop()} + newline)"
    return f" = {len(lines)} x {patches.pop()}" + (f" + {others}" if others else "")


def _legend(trace: Trace) -> list[tuple[Colour, str]]:
    kinds = {token.kind for token in trace.tokens}
    entries = [((150, 160, 175), "a patch, or several pooled, in its own colour; numbers count tokens")]
    if "separator" in kinds:
        entries.append((NEWLINE, "a newline: a learned vector that ends a line"))
    if "prefix" in kinds:
        entries.append((PREFIX, "a class token"))
    return entries
