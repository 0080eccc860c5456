"""Where everything goes: plans of the four kinds of scenes, before a pixel is drawn."""

from __future__ import annotations

import math
from random import Random

from .drawing import COLOURS, REACH, SHAPES, Look, Text, Thing, imagine, tint
from .lettering import letters
from .questions import Draft
from .wordings import NUMBERS, PLACES, WAYS, WORDS

FRAMES = 8
SPOTS = dict(zip(PLACES, ((0.22, 0.22), (0.78, 0.22), (0.22, 0.78), (0.78, 0.78), (0.5, 0.5)), strict=True))
Box = tuple[float, float, float, float]  # left, top, right, bottom, in units of the shorter side


def picture_size(rng: Random, squarish: bool = False, least: int = 96) -> tuple[int, int]:
    """Width and height in pixels."""
    short, kind = rng.randint(least, 160), rng.random()
    if squarish or kind < 0.72:
        long = round(short * rng.uniform(1, 1.15)) if rng.random() < 0.5 else short
    elif kind < 0.9:
        long = round(short * rng.uniform(1.15, 2.1))
    else:
        short, long = (round(side * rng.uniform(1.5, 2)) for side in (short, short * rng.uniform(1, 1.2)))
        short, long = sorted((min(short, 320), min(long, 320)))
    return (short, long) if rng.random() < 0.5 else (long, short)


def traits(rng: Random, number: int) -> list[tuple[str, str]]:
    """Shapes and colours: mostly all different, at times many alike."""
    every = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    mode = rng.random()
    if mode < 0.15:
        shape = rng.choice(SHAPES)
        return [(shape, colour) for colour in rng.choices(list(COLOURS), k=number)]
    if mode < 0.3:
        colour = rng.choice(list(COLOURS))
        return [(shape, colour) for shape in rng.choices(SHAPES, k=number)]
    if mode < 0.45:
        few = rng.sample(every, 2)
        return rng.choices(few, k=number)
    return rng.sample(every, number)


def radii(rng: Random, number: int, least: float, mixed: bool) -> list[float]:
    crowd = {1: 0.32, 2: 0.24, 3: 0.19, 4: 0.165, 5: 0.15}[max(1, number)]
    most = max(crowd, least * 1.3)
    if mixed and number > 1:
        large = rng.uniform(max(least * 1.6, 0.7 * most), most)
        sizes = [large * rng.uniform(0.93, 1) if i % 2 else max(least, large * rng.uniform(0.38, 0.6))
                 for i in range(number)]
        if number > 2 and rng.random() < 0.6:  # one stands out
            one, rest = rng.sample(sizes[:2], 2)
            sizes = [one, *[rest] * (number - 1)]
    elif rng.random() < 0.5:
        sizes = [rng.uniform(least, most)] * number
    else:
        sizes = [rng.uniform(least, most) for _ in range(number)]
    rng.shuffle(sizes)
    return sizes


def things(rng: Random, number: int, width: float, height: float, *, least: float = 0.07, mixed: bool = False,
           taken: list[Box] | None = None, spot: str = "") -> list[Thing] | None:
    """So many things that keep clear of each other, of the border and of the boxes; None where no room was found."""
    tidy, edge = rng.random() < 0.4, rng.choice((0.0, 0.0, rng.uniform(0.08, 0.22)))
    some = rng.random() < 0.3  # only some have an outline
    placed: list[Thing] = []
    at: list[tuple[float, float, float]] = []
    for (shape, colour), r in zip(traits(rng, number), radii(rng, number, least, mixed), strict=True):
        reach = r * REACH[shape]
        for attempt in range(30):
            if spot and not placed and attempt < 20:
                x, y = (SPOTS[spot][i] * side + rng.uniform(-0.1, 0.1) * side * (0.7 if spot == "center" else 1)
                        for i, side in enumerate((width, height)))
                x = min(max(x, reach + 0.01), width - reach - 0.01)
                y = min(max(y, reach + 0.01), height - reach - 0.01)
            else:
                x, y = (rng.uniform(reach + 0.01, side - reach - 0.01) for side in (width, height))
            if (all(math.hypot(x - a, y - b) > reach + c + 0.025 for a, b, c in at)
                    and not any(_near(x, y, reach + 0.02, box) for box in taken or ())):
                break
        else:
            return None
        at.append((x, y, reach))
        placed.append(Thing(shape, colour, x / width, y / height, r, tint(rng, colour), _turn(rng, shape, tidy),
                            rng.random(), 0.0 if some and rng.random() < 0.5 else edge))
    return placed


def _near(x: float, y: float, reach: float, box: Box) -> bool:
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])) < reach


def _turn(rng: Random, shape: str, tidy: bool) -> float:
    if tidy:
        return 0.0
    if shape == "triangle" and rng.random() < 0.2:
        return math.pi
    most = {"circle": 0, "square": 45, "triangle": 60, "star": 36, "cross": 22}[shape]
    return math.radians(rng.uniform(-most, most) * rng.choice((0.3, 1)))


def fills(drawn: list[Thing]) -> list[tuple[int, int, int]]:
    return [thing.fill for thing in drawn]


def objects(rng: Random, skill: str | None) -> tuple[Draft, list[Look]] | None:
    """One to five things in one picture."""
    size = picture_size(rng)
    weights = {"relation": (0, 6, 2, 1, 1), "size": (0, 5, 3, 1, 1), "count": (1, 2, 3, 4, 5),
               "look_up": (0, 6, 4, 3, 3), "find": (0, 3, 4, 4, 4)}
    number = rng.choices((1, 2, 3, 4, 5), weights.get(skill or "", (3, 5, 4, 3, 3)))[0]
    if skill in ("count", "exists", None) and rng.random() < 0.015:
        number = 0
    short = min(size)
    least = 0.07 if max(size) < 1.4 * short else 0.105  # the longer side decides how small it is seen
    spot = rng.choice(PLACES) if skill in ("position", "find") or rng.random() < 0.35 else ""
    mixed = skill == "size" or rng.random() < 0.4
    drawn = things(rng, number, size[0] / short, size[1] / short, least=least, mixed=mixed, spot=spot)
    if drawn is None:
        return None
    rng.shuffle(drawn)
    return Draft("objects", [drawn]), [imagine(rng, size, fills(drawn))]


def texts(rng: Random, skill: str | None) -> tuple[Draft, list[Look]] | None:
    """A word or a number, or one of each in two sizes; and sometimes things beside."""
    small = skill == "small_text" or (skill is None and rng.random() < 0.5)
    both = rng.random() < 0.35
    size = picture_size(rng, least=128 if small or both else 96)
    look = imagine(rng, size, [], gentle=small or both, most=400)
    word = skill in ("word", "spell") or (skill != "digits" and rng.random() < 0.5)
    kinds = [(word, small), (not word, not small)] if both else [(word, small)]
    written: list[Text] = []
    for is_word, is_small in sorted(kinds, key=lambda kind: kind[1]):  # the large one finds its place first
        text = _text(rng, look, is_word, is_small, written)
        if text is None:
            return None
        written.append(text)
    unit = look.scale * look.short
    taken = [(t.x / unit, t.y / unit, (t.x + t.mask.width) / unit, (t.y + t.mask.height) / unit) for t in written]
    number = rng.choice((0, 1, 1, 2, 2, 3))
    for fewer in range(number, -1, -1):
        drawn = things(rng, fewer, size[0] / look.short, size[1] / look.short, least=0.08, taken=taken)
        if drawn is not None:
            break
    assert drawn is not None  # no thing at all always fits
    fitting = imagine(rng, size, fills(drawn), gentle=small or both)
    return Draft("text", [drawn], written), [fitting._replace(scale=look.scale, smooth=look.smooth)]


def _text(rng: Random, look: Look, word: bool, small: bool, others: list[Text]) -> Text | None:
    text = rng.choice(WORDS) if word else str(rng.choice(NUMBERS) if rng.random() < 0.8 else rng.choice(NUMBERS[:10]))
    shown = rng.choice((text, text.upper(), text.upper(), text.capitalize()))
    wide, high = look.width * look.scale, look.height * look.scale
    if small:  # 8.5 to 11.5 pixels where the longer side has 128: hardly anything at half of that
        cap = rng.uniform(8.5, 11.5) / 128 * max(wide, high)
        mask = letters(rng, shown, cap, 0.6 * wide, plain=True, smooth=True)
    else:
        cap = rng.uniform(0.24, 0.5) * min(wide, high)
        mask = letters(rng, shown, cap, 0.9 * wide, plain=False, smooth=look.smooth)
    room = round(mask.height * (0.5 if small else 0.08)) + 1
    if mask.width + 2 * room > wide or mask.height + 2 * room > high:
        return None
    for _ in range(20):
        x, y = rng.randint(room, wide - mask.width - room), rng.randint(room, high - mask.height - room)
        if not any(x < o.x + o.mask.width + room and o.x < x + mask.width + room and y < o.y + o.mask.height + room
                   and o.y < y + mask.height + room for o in others):
            return Text(text, small, mask, x, y, plate=small and rng.random() < 0.3)
    return None


def pair(rng: Random) -> tuple[Draft, list[Look]] | None:
    """Two pictures: one thing in each, or several."""
    numbers, pictures, sizes = (1, 1), [], []
    if rng.random() < 0.45:
        numbers = rng.choice([(a, b) for a in range(1, 5) for b in range(1, 5) if a != b and a + b > 2])
        numbers = (numbers[0],) * 2 if rng.random() < 0.33 and numbers[0] > 1 else numbers
    for number in numbers:
        size = picture_size(rng, squarish=True)
        drawn = things(rng, number, size[0] / min(size), size[1] / min(size), least=0.12)
        if drawn is None:
            return None
        pictures.append(drawn)
        sizes.append(size)
    if numbers == (1, 1):
        a, b = pictures[0][0], pictures[1][0]
        shape = a.shape if rng.random() < 0.4 else b.shape
        colour = a.colour if rng.random() < 0.4 else b.colour
        if REACH[shape] > REACH[b.shape]:  # still inside
            b = b._replace(r=b.r * REACH[b.shape] / REACH[shape])
        pictures[1] = [b._replace(shape=shape, colour=colour, turn=_turn(rng, shape, False), fill=tint(rng, colour))]
    looks = [imagine(rng, size, fills(drawn)) for size, drawn in zip(sizes, pictures, strict=True)]
    return Draft("pair", pictures), looks


def clip(rng: Random, skill: str | None) -> tuple[Draft, list[Look], list[Thing | None]] | None:
    """One thing that moves, blinks or jumps among others that stand still; and where it is in every frame."""
    short = rng.randint(64, 112)
    size = (short, round(short * rng.uniform(1, rng.choice((1.15, 1.15, 1.4)))))
    size = size if rng.random() < 0.5 else size[::-1]
    width, height = size[0] / short, size[1] / short
    still = {"direction": 0.0, "times": 1.0}.get(skill or "", 0.6)  # share of clips that repeat something in place
    act = rng.choice(("blink", "jump")) if rng.random() < still else "move"
    drawn = things(rng, rng.choice((1, 1, 2, 2, 3, 4)), width, height, least=0.105)
    if drawn is None:
        return None
    mover = drawn[0]
    if sum(t[:2] == mover[:2] for t in drawn) > 1:
        return None
    times, way = rng.randint(1, 3), rng.choice(WAYS)
    path = _walk(rng, mover, width, height, way) if act == "move" else _repeat(rng, mover, act, times, height)
    if not _free(path, drawn[1:], width, height):
        return None
    look = imagine(rng, size, fills(drawn), most=256)
    draft = Draft("clip", [drawn], mover=mover, act=act, way=way if act == "move" else "",
                  times=0 if act == "move" else times, rests=tuple(thing == path[0] for thing in path))
    return draft, [look], path


def _walk(rng: Random, mover: Thing, width: float, height: float, way: str) -> list[Thing | None]:
    """Along one axis for at least a third of the picture, with a little drift."""
    side = width if way in ("left", "right") else height
    edge = mover.r * REACH[mover.shape] / side + 0.01
    far = rng.uniform(min(0.35, 1 - 2 * edge), 1 - 2 * edge)
    start = rng.uniform(edge, 1 - edge - far)
    drift, ease = rng.uniform(-0.06, 0.06) * rng.choice((0, 1)), rng.uniform(0.75, 1.35)
    path: list[Thing | None] = []
    for i in range(FRAMES):
        share = (i / (FRAMES - 1)) ** ease
        along = start + far * (share if way in ("right", "down") else 1 - share)
        path.append(mover._replace(x=along, y=mover.y + drift * share) if way in ("left", "right")
                    else mover._replace(y=along, x=mover.x + drift * share))
    return path


def _repeat(rng: Random, mover: Thing, act: str, times: int, height: float) -> list[Thing | None]:
    """Away and back, so many times. It begins and ends at rest; every state lasts at least one frame."""
    runs = [1] * (2 * times + 1)
    for _ in range(FRAMES - len(runs)):
        runs[rng.randrange(len(runs))] += 1
    reach = mover.r * REACH[mover.shape] / height
    rise = rng.uniform(0.2, 0.4)
    if act == "jump":  # from the floor, or from anywhere
        least, most = reach + rise + 0.005, 1 - reach - 0.005
        mover = mover._replace(y=rng.uniform(max(least, min(rng.choice((0, 0.6)), most)), max(least, most)))
    path: list[Thing | None] = []
    for i, length in enumerate(runs):
        for step in range(length):
            if i % 2 == 0:
                path.append(mover)
            elif act == "blink":
                path.append(None)
            else:
                bend = math.sin((step + 1) / (length + 1) * math.pi) if length > 1 else 1.0
                path.append(mover._replace(y=mover.y - rise * max(0.5, bend) * rng.uniform(0.85, 1)))
    return path


def _free(path: list[Thing | None], others: list[Thing], width: float, height: float) -> bool:
    """Whether the whole way keeps inside the picture and clear of what stands still."""
    for thing in filter(None, path):
        reach = thing.r * REACH[thing.shape]
        if not (reach <= thing.x * width <= width - reach and reach <= thing.y * height <= height - reach):
            return False
        if any(math.hypot((thing.x - t.x) * width, (thing.y - t.y) * height) < reach + t.r * REACH[t.shape] + 0.02
               for t in others):
            return False
    return True
