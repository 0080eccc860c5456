"""From a plan of a scene to pixels: backgrounds, shapes, text, and what cameras and codecs do to them."""

from __future__ import annotations

import colorsys
import io
import math
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
# hue in degrees, saturation, value; wide enough to hold the usual named colours, with clear gaps between them
COLOURS = {
    "red": ((-8, 6), (0.72, 1), (0.68, 1)),
    "green": ((92, 150), (0.55, 1), (0.42, 1)),
    "blue": ((206, 240), (0.65, 1), (0.6, 1)),
    "yellow": ((50, 61), (0.7, 1), (0.86, 1)),
    "purple": ((270, 300), (0.5, 1), (0.48, 0.95)),
    "orange": ((21, 39), (0.82, 1), (0.92, 1)),
}
REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.42, "star": 1.25, "cross": 1.2}  # farthest point, in radii


class Thing(NamedTuple):
    """One object.   x, y: its centre as parts of width and height   r: radius as a part of the shorter side"""

    shape: str
    colour: str
    x: float
    y: float
    r: float
    fill: RGB = (0, 0, 0)
    turn: float = 0.0  # radians
    build: float = 0.5  # 0..1: how thick a cross or a star is, how tall a triangle
    edge: float = 0.0  # width of the outline in radii


class Text(NamedTuple):
    """A written word or number.   x, y: its upper left corner in canvas pixels"""

    text: str
    small: bool
    mask: Image.Image
    x: int = 0
    y: int = 0
    plate: bool = False


class Look(NamedTuple):
    """Everything about a picture that no question asks for.   width, height: in pixels; scale: of the canvas"""

    width: int
    height: int
    scale: int
    ground: tuple[RGB, RGB]  # one colour twice where it is plain
    pattern: str
    edge: RGB
    ink: RGB
    seed: int
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    gain: float = 1.0
    lift: float = 0.0
    smooth: bool = True

    @property
    def short(self) -> int:
        return min(self.width, self.height)


def tint(rng: Random, colour: str) -> RGB:
    hue, saturation, value = (rng.uniform(*bounds) for bounds in COLOURS[colour])
    return _rgb(hue, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)


def bright(colour: RGB) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def imagine(rng: Random, size: tuple[int, int], fills: list[RGB], gentle: bool = False, most: int = 640) -> Look:
    """A look in which things of these colours stand out. `gentle` spares small letters."""
    smooth = rng.random() < 0.8
    scale = rng.choice((2, 2, 2, 4)) if smooth else 1
    while scale > 1 and scale * max(size) > most:
        scale //= 2
    ground, pattern = _ground(rng, fills)
    dark = (bright(ground[0]) + bright(ground[1])) / 2 < 128
    light = dark if rng.random() < 0.85 else not dark  # mostly an outline stands out
    edge = rng.choice(((255, 255, 255), (235, 235, 235)) if light else ((0, 0, 0), (30, 30, 30), (70, 70, 70)))
    often = 0.5 if gentle else 1.0
    return Look(
        *size, scale, ground, pattern, edge, _ink(rng, dark, ground[0]), rng.getrandbits(30),
        blur=rng.uniform(0.3, 0.5 if gentle else 0.9) if rng.random() < 0.2 * often else 0.0,
        noise=rng.uniform(2, 5 if gentle else 12) if rng.random() < 0.25 else 0.0,
        jpeg=rng.randint(75 if gentle else 40, 95) if rng.random() < 0.4 else 0,
        gain=rng.uniform(0.87, 1.13) if rng.random() < 0.5 else 1.0,
        lift=rng.uniform(-14, 14) if rng.random() < 0.5 else 0.0, smooth=smooth)


def _ground(rng: Random, fills: list[RGB]) -> tuple[tuple[RGB, RGB], str]:
    for _ in range(12):
        kind = rng.random()
        if kind < 0.3:
            first = rng.choice(((255, 255, 255), (255, 255, 255), (240, 240, 240), (0, 0, 0), (20, 20, 24)))
        elif kind < 0.38:
            first = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(0.3, 0.8))
        elif kind < 0.78:
            first = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.28), rng.uniform(0.8, 1))
        else:
            first = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.04, 0.24))
        second = tuple(min(255, max(0, c + rng.randint(-34, 34))) for c in first)
        pattern = rng.choice(("plain", "plain", "plain", "gradient", "gradient", "stripes", "grid"))
        if pattern in ("stripes", "grid"):  # soft ones
            second = tuple(c + round((d - c) * 0.6) for c, d in zip(first, second, strict=True))
        ground = (first, first if pattern == "plain" else second)
        if all(math.dist(fill, colour) > 115 for fill in fills for colour in ground):
            return ground, pattern  # type: ignore[return-value]
    return ((255, 255, 255), (255, 255, 255)), "plain"


def _ink(rng: Random, dark: bool, ground: RGB) -> RGB:
    if rng.random() < 0.5:
        return (255, 255, 255) if dark else (0, 0, 0)
    vivid = tint(rng, rng.choice(("yellow", "orange", "green") if dark else ("red", "blue", "purple")))
    if rng.random() < 0.4 and math.dist(vivid, ground) > 150:
        return vivid
    if dark:
        return _rgb(rng.uniform(30, 200), rng.uniform(0, 0.5), rng.uniform(0.9, 1))
    return _rgb(rng.uniform(0, 360), rng.uniform(0.2, 1), rng.uniform(0.1, 0.42))


def canvas(look: Look) -> Image.Image:
    """The background at canvas scale."""
    rng, (first, second) = Random(look.seed), look.ground
    size = look.width * look.scale, look.height * look.scale
    if look.pattern == "gradient":
        corners = Image.new("RGB", (2, 2), first)
        for spot in rng.choice((((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 1),), ((1, 0),))):
            corners.putpixel(spot, second)
        return corners.resize(size, Image.Resampling.BILINEAR, (0.5, 0.5, 1.5, 1.5))
    picture = Image.new("RGB", size, first)
    if look.pattern in ("stripes", "grid"):
        draw, step = ImageDraw.Draw(picture), rng.uniform(0.06, 0.2) * look.short * look.scale
        wide, lean = max(1, round(step * (0.5 if look.pattern == "stripes" else 0.1))), rng.choice((0, 0, 1, -1))
        both = look.pattern == "grid"
        for i in range(-int(size[1] / step) - 1, int((size[0] + size[1]) / step) + 2):
            at = i * step
            if both or look.seed % 2:
                draw.line((at, 0, at + (0 if both else lean * size[1]), size[1]), second, wide)
            if both or not look.seed % 2:
                draw.line((0, at, size[0], at + (0 if both else lean * size[0])), second, wide)
    return picture


def outline(thing: Thing, radius: float) -> list[tuple[float, float]]:
    """The corners around the origin, in pixels."""
    if thing.shape == "square":
        points = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif thing.shape == "triangle":
        tall = 0.88 + 0.25 * thing.build  # as high as wide at 1.15
        points = [(1.25 * math.sin(i * math.tau / 3), -1.25 * tall * math.cos(i * math.tau / 3)) for i in range(3)]
    elif thing.shape == "star":
        far = (1.25, 1.25 * (0.38 + 0.14 * thing.build))
        points = [(far[i % 2] * math.sin(i * math.tau / 10), -far[i % 2] * math.cos(i * math.tau / 10))
                  for i in range(10)]
    else:
        a, b = 1.12, 0.22 + 0.2 * thing.build
        points = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b),
                  (-b, -b)]
    cos, sin = math.cos(thing.turn) * radius, math.sin(thing.turn) * radius
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def draw_thing(draw: ImageDraw.ImageDraw, look: Look, thing: Thing) -> None:
    x, y = thing.x * look.width * look.scale, thing.y * look.height * look.scale
    radius = thing.r * look.short * look.scale
    edge = max(1, round(thing.edge * radius)) if thing.edge else 0
    if thing.shape == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, thing.fill, look.edge if edge else None, edge)
        return
    points = [(x + a, y + b) for a, b in outline(thing, radius)]
    draw.polygon(points, thing.fill)
    if edge:
        draw.line([*points, points[0], points[1]], look.edge, edge, joint="curve")


def draw_text(picture: Image.Image, look: Look, text: Text) -> None:
    if text.plate:
        room = max(2, text.mask.height // 4)
        paper = (255, 255, 255) if bright(look.ink) < 128 else (0, 0, 0)
        box = (text.x - room, text.y - room, text.x + text.mask.width + room, text.y + text.mask.height + room)
        ImageDraw.Draw(picture).rectangle(box, paper)
    picture.paste(look.ink, (text.x, text.y), text.mask)


def paint(look: Look, things: list[Thing], texts: list[Text] | tuple[()] = ()) -> Image.Image:
    picture = canvas(look)
    draw = ImageDraw.Draw(picture)
    for thing in things:
        draw_thing(draw, look, thing)
    for text in texts:
        draw_text(picture, look, text)
    return finish(picture, look)


def film(look: Look, still: list[Thing], moving: list[Thing | None]) -> NDArray[Any]:
    """Some things stand still; one has a place in every frame, or is hidden.   -> uint8 [frames, height, width, 3]"""
    backdrop = canvas(look)
    draw = ImageDraw.Draw(backdrop)
    for thing in still:
        draw_thing(draw, look, thing)
    frames = []
    for i, mover in enumerate(moving):
        frame = backdrop.copy()
        if mover is not None:
            draw_thing(ImageDraw.Draw(frame), look, mover)
        frames.append(np.asarray(finish(frame, look._replace(seed=look.seed + i))))
    return np.stack(frames)


@lru_cache(1)
def _grain() -> NDArray[Any]:
    return np.random.default_rng(7).standard_normal((512, 512, 3), np.float32)


@lru_cache(8)
def _light(gain: float, lift: float) -> list[int]:
    return [min(255, max(0, round((i - 128) * gain + 128 + lift))) for i in range(256)] * 3


def finish(picture: Image.Image, look: Look) -> Image.Image:
    """Canvas to picture: shrink, change the light, blur, add noise, compress."""
    if look.scale > 1:
        picture = picture.reduce(look.scale)
    if look.gain != 1 or look.lift:
        picture = picture.point(_light(look.gain, look.lift))
    if look.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(look.blur * look.short / 112))
    if look.noise:
        y, x = look.seed % 170, look.seed // 170 % 170  # a picture has at most 336 pixels
        grain = _grain()[y : y + picture.height, x : x + picture.width]
        noisy = np.asarray(picture) + grain * look.noise
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if look.jpeg:
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=look.jpeg, subsampling=0 if look.seed % 2 else 2)
        picture = Image.open(file)
        picture.load()
        picture = picture.convert("RGB")
    return picture
