"""What each word of an answer looked at, drawn on the picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import VlmkitError
from ..generate import generate
from ..model.vlm import VLM
from ..types import Batch, Visual
from .drawing import FAINT, INK, MARGIN, PAPER, font, picture
from .tiles import GAP, WIDTH
from .trace import Trace, sheets
from .watch import watch

POINTS = "decoder.*.attn.weights"
SIDE = 220  # height of a sheet


class Look(NamedTuple):
    """One token of the answer, and how its attention lies on the visual tokens.   weights [slots], sums to at most 1"""

    word: str
    weights: Tensor


def looks(model: VLM, processor: Any, conversation: Any, max_new_tokens: int = 16) -> tuple[list[Look], Batch]:
    """Answer, then run prompt and answer once more and read the attention, averaged over heads and layers.

    Tokens without text, such as the one that ends an answer, are left out.
    """
    if not any(name.endswith("attn.weights") for name, _ in model.named_modules()):
        raise VlmkitError("this attention backend keeps no weights to look at", hint='load with attention="eager"')
    answer = generate(model, processor, conversation, max_new_tokens=max_new_tokens, details=True)
    batch = processor(conversation)
    said = torch.tensor(answer.ids, dtype=batch.ids.dtype)
    whole = batch._replace(ids=torch.cat([batch.ids, said]), lens=batch.lens + len(said), labels=None)
    device = next(model.parameters()).device
    rows = slice(len(batch.ids) - 1, len(batch.ids) - 1 + len(said))  # a word is chosen at the place before it
    with torch.no_grad(), watch(model, POINTS, keep=lambda w: w.detach()[:, rows].float().mean(0).cpu()) as seen:
        model(whole.to(device))
    weights = torch.stack([w for passed in seen.values() for w in passed]).mean(0)[:, batch.slots]
    words = [processor.tokenizer.decode([i]) for i in answer.ids]
    return [Look(word, row) for word, row in zip(words, weights, strict=True) if word], batch


def draw(found: list[Look], visual: Visual, trace: Trace, slots: slice = slice(None)) -> Image.Image:
    """One row of sheets for each word; `slots` are those of this visual among all visual tokens."""
    pages = [picture(sheet) for sheet in sheets(visual.pixels, visual.layout)]
    widths = [min(round(SIDE * page.width / page.height), 2 * SIDE) for page in pages]
    panel = Image.new("RGB", (WIDTH, 30 + len(found) * (SIDE + 26)), PAPER)
    pen = ImageDraw.Draw(panel)
    for line, look in enumerate(found):
        y = 20 + line * (SIDE + 26)
        weights, word = look.weights[slots], look.word.strip() or repr(look.word)
        pen.text((MARGIN, y + SIDE / 2 - 12), word, font=font(22), fill=INK, anchor="lm")
        pen.text((MARGIN, y + SIDE / 2 + 16), f"{weights.sum():.0%} on it", font=font(15), fill=FAINT, anchor="lm")
        heat = _heat(weights, trace)
        top = max(float(sheet.max()) for sheet in heat)
        for number, page in enumerate(pages):  # what does not fit the panel is left out
            x = MARGIN + 150 + sum(widths[:number]) + number * GAP
            panel.paste(_glow(page, heat[number] / max(top, 1e-9), widths[number]), (x, y))
    return panel


def _heat(weights: Tensor, trace: Trace) -> list[Tensor]:
    """The weight of each token, laid on the patches it was made of.   list of [rows, cols]"""
    heat = [torch.zeros(used.shape) for used in trace.used]
    for weight, token in zip(weights.tolist(), trace.tokens, strict=True):
        if token.kind == "patch":
            sheet = heat[token.sheet]
            sheet[min(round(token.y), len(sheet) - 1), min(round(token.x), sheet.shape[1] - 1)] += weight
    return heat


def _glow(page: Image.Image, heat: Tensor, width: int) -> Image.Image:
    """The picture in grey, with what was looked at in colour and orange light.   heat [rows, cols], 0..1"""
    shown = page.resize((width, SIDE), Image.Resampling.LANCZOS)
    smooth = F.interpolate(heat[None, None], (SIDE, width), mode="bilinear")[0, 0].clamp(0, 1).numpy()[..., None]
    colour = numpy.asarray(shown).astype(numpy.float32)
    grey = colour.mean(-1, keepdims=True) * 0.35 + 150
    mixed = grey * (1 - smooth) + (colour * 0.75 + numpy.array([255, 150, 0]) * 0.25) * smooth
    return Image.fromarray(mixed.clip(0, 255).astype(numpy.uint8))
