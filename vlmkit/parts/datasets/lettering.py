"""Words as masks: every usable font of the machine, stretched, slanted and spaced. Pillow's own font suffices."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}
# Pictograms, and strokes thinner than a pixel at our sizes.
UNUSABLE = re.compile("emoji|symbol|dingbat|icon|math|music|keyboard|linbiolinum_k|initial|hairline|thin|extralight"
                      "|fallback|outline", re.I)
PROBE = "agkGMQR1570"
MOST = 240  # of the fonts found; more add start-up time, not variety


@lru_cache(1)
def fonts() -> tuple[str, ...]:
    """Paths of the fonts that draw Latin letters and digits, "" for Pillow's own; one of each look."""
    seen, found = set(), [""]
    folders = [Path(os.path.expanduser(name)) for name in FOLDERS.get(sys.platform, FOLDERS["linux"])]
    for path in sorted(p for folder in folders if folder.is_dir() for p in folder.rglob("*.[to]tf")):
        if UNUSABLE.search(path.stem) or re.search("noto(sans|serif)[a-z]", path.stem, re.I):
            continue  # noto's other scripts repeat its Latin
        try:
            look = _look(str(path))
        except (OSError, ValueError):
            continue
        if look and look not in seen:
            seen.add(look)
            found.append(str(path))
    step = max(1, -(-len(found) // MOST))
    return tuple(found[::step])


def _look(path: str) -> bytes:
    """What the probe looks like in this font; empty when a letter is missing."""
    font = ImageFont.truetype(path, 24)
    missing = bytes(font.getmask("\U000f1234"))
    glyphs = [bytes(font.getmask(letter)) for letter in PROBE]
    whole = all(any(glyph) and glyph != missing for glyph in glyphs) and len(set(glyphs)) == len(PROBE)
    return b"".join(glyphs) if whole else b""


@lru_cache(1024)
def font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@lru_cache(512)
def capital(path: str) -> float:
    """Height of a capital letter as a part of the font's size."""
    box = font(path, 100).getbbox("H")
    return max(box[3] - box[1], 30) / 100


def letters(rng: Random, text: str, cap: float, widest: float, plain: bool, smooth: bool) -> Image.Image:
    """A grey mask of the text with capitals about `cap` pixels high. `plain` keeps it straight and readable."""
    paths = fonts()
    path = rng.choice(paths) if rng.random() < 0.8 else ""
    face = font(path, max(6, round(cap / capital(path))))
    spacing = rng.choice((0, 0, 0.05, 0.12)) * cap
    stroke = 0 if plain else round(rng.choice((0, 0, 0, 0.03, 0.06)) * cap)
    mask = _write(text, face, spacing, stroke, smooth)
    if rng.random() < 0.5:
        spread = 0.1 if plain else 0.22
        across, slant = rng.uniform(1 - spread, 1 + spread), rng.uniform(-spread, spread)
        wide = round(mask.width * across + abs(slant) * mask.height)
        shift = -max(slant, 0) * mask.height  # keeps the slanted text inside the wider box
        mask = mask.transform((wide, mask.height), Image.Transform.AFFINE,
                              (1 / across, slant / across, shift / across, 0, 1, 0), Image.Resampling.BILINEAR)
    if not plain and rng.random() < 0.35:
        mask = mask.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR, expand=True)
    mask = mask.crop(mask.getbbox())
    if mask.width > widest:
        mask = mask.resize((round(widest), max(1, round(mask.height * widest / mask.width))), Image.Resampling.BOX)
    return mask


def _write(text: str, face: Font, spacing: float, stroke: int, smooth: bool) -> Image.Image:
    room = 4 + stroke * 2
    pieces = list(text) if spacing else [text]
    wide = sum(face.getlength(piece) + spacing for piece in pieces)
    high = face.getbbox("Hgy")[3]
    mask = Image.new("L", (int(wide) + 2 * room + int(high * 0.3), int(high) + 2 * room))
    draw = ImageDraw.Draw(mask)
    draw.fontmode = "L" if smooth else "1"
    x = float(room)
    for piece in pieces:
        draw.text((round(x), room), piece, fill=255, font=face, stroke_width=stroke)
        x += face.getlength(piece) + spacing
    return mask
