"""Teach the tower of `tiny` to see before it is asked: each cell names its place, and the shape, colour, letters in it.

A question gives one word of feedback for a whole picture; here each 16 pixels of each tile give some. Called by
train_tiny.py, before the model learns to answer.
"""

import math
from random import Random

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vlmkit.parts.datasets import plans
from vlmkit.parts.datasets.drawing import COLOURS, SHAPES, paint
from vlmkit.parts.tilers.anyres import fitted

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SIDE, CELL, CELLS = 64, 16, 16  # pixels of a tile and of one of its cells; how many of those a tile has
NOTHING, HALVES = 0, 2 * len(LETTERS)


def draw(seed, tiler):
    """One scene -> tiles uint8 [tiles, 3, 64, 64], things int64 [tiles, 16, 2], letters bool [tiles, 16, 72]"""
    rng, planned = Random(f"{seed} cells"), None
    while planned is None:
        skill = rng.choice((None, "digits", "small_text"))  # numbers are the shortest texts, so more of them
        planned = plans.texts(rng, skill) if rng.random() < 0.65 else plans.objects(rng, None)
    draft, (look,) = planned
    picture = paint(look, draft.things, draft.texts)
    layout = tiler.plan(look.height, look.width, True)
    tiles = tiler.cut(picture, layout)
    high, wide = layout.rows * SIDE, layout.cols * SIDE
    new = fitted(look.height, look.width, high, wide)
    things = torch.zeros(len(tiles), CELLS, 2, dtype=torch.int64)
    letters = torch.zeros(len(tiles), CELLS, HALVES, dtype=torch.bool)
    views = [(0, 0, SIDE / look.width, SIDE / look.height, 0.0, 0.0)]  # first cell, pixels a pixel, offset
    views += [(r * 4, c * 4, new[1] / look.width, new[0] / look.height, (wide - new[1]) // 2, (high - new[0]) // 2)
              for r in range(layout.rows) for c in range(layout.cols)]
    for tile, (top, left, across, down, x0, y0) in enumerate(views):
        for cell in range(CELLS):
            x = ((left + cell % 4 + 0.5) * CELL - x0) / across
            y = ((top + cell // 4 + 0.5) * CELL - y0) / down
            box = CELL / 2 / across, CELL / 2 / down
            things[tile, cell] = torch.tensor(thing_at(draft, look, x, y, box))
            for letter in letters_at(draft, look, x, y, box, down):
                letters[tile, cell, letter] = True
    return tiles, things, letters


def thing_at(draft, look, x, y, box):
    """Shape and colour of what covers the cell, or has its centre in it; 0, 0 for nothing."""
    best, found = math.inf, (NOTHING, NOTHING)
    for thing in draft.things:
        dx, dy = abs(thing.x * look.width - x), abs(thing.y * look.height - y)
        near = math.hypot(dx, dy) < thing.r * look.short or (dx <= box[0] and dy <= box[1])
        if near and dx + dy < best:
            best = dx + dy
            found = (1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour))
    return found


def letters_at(draft, look, x, y, box, down):
    """Letters in the left half of the cell, and (behind them) in its right half; large ones are in both."""
    for text in draft.texts:
        if text.mask.height / look.scale * down < 6:  # nobody can read that
            continue
        width, height = text.mask.width / look.scale / len(text.text), text.mask.height / look.scale
        middle = text.y / look.scale + height / 2
        for i, letter in enumerate(text.text):
            at = text.x / look.scale + (i + 0.5) * width
            if abs(middle - y) > max(box[1], height / 2):
                continue
            for half, shift in enumerate((-box[0] / 2, box[0] / 2)):
                if abs(at - x - shift) <= max(box[0] / 2, width / 2):
                    yield LETTERS.index(letter) + half * len(LETTERS)


class Scenes(Dataset):
    def __init__(self, tiler, size, steps):
        self.tiler, self.size, self.steps = tiler, size, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        drawn = [draw(step * self.size + i, self.tiler) for i in range(self.size)]
        return tuple(torch.cat(column) for column in zip(*drawn, strict=True))


def teach(tower, tiler, steps, size=16, rate=3e-3, say=print):
    """Train the tower and a throw-away head; the head is not kept."""
    parts = (1 + len(SHAPES), 1 + len(COLOURS), CELLS, HALVES)
    head = nn.Linear(tower.width, sum(parts))
    learned = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    tower.train()
    for step, batch in enumerate(DataLoader(Scenes(tiler, size, steps), batch_size=None, num_workers=1,
                                            prefetch_factor=6)):
        tiles, things, letters = batch
        shape, colour, place, letter = head(tower(tiles).tokens).split(parts, -1)
        shapes, colours = (F.cross_entropy(said.flatten(0, 1), true.flatten(), weight=torch.tensor([0.3] + [1.0] * n))
                           for said, true, n in ((shape, things[..., 0], len(SHAPES)),
                                                 (colour, things[..., 1], len(COLOURS))))
        reading = F.binary_cross_entropy_with_logits(letter, letters.float(), reduction="sum") / letters.sum().clamp(1)
        places = F.cross_entropy(place.flatten(0, 1), torch.arange(CELLS).repeat(len(tiles)))
        (shapes + colours + reading + 0.3 * places).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            some = things[..., 0] > 0
            right = (shape.argmax(-1) == things[..., 0])[some].float().mean().item()
            read = (letter.sigmoid() > 0.5)[letters].float().mean().item()
            say(f"{step + 1}: shapes {shapes.item():.3f} ({100 * right:.0f} % right), colours {colours.item():.3f}, "
                f"letters {reading.item():.3f} ({100 * read:.0f} % found)")
