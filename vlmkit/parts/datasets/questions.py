"""What can be asked about a planned scene, and the right answers. One function for each skill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations, product
from random import Random

from .drawing import COLOURS, SHAPES, Text, Thing
from .wordings import PLACES, Question, put

SIZED = 1.4  # a difference in size that anybody sees, as a ratio of radii
APART = 0.16  # a distance to the left or above that anybody sees, as a part of the picture
NEAR, FAR = 0.36, 0.64  # borders of the thirds that places are named after


@dataclass
class Draft:
    """A scene before it is drawn.   act: "move", "blink" or "jump" of the clip's mover"""

    kind: str
    pictures: list[list[Thing]]
    texts: list[Text] = field(default_factory=list)
    mover: Thing | None = None
    act: str = ""
    way: str = ""
    times: int = 0
    rests: tuple[bool, ...] = ()  # frame by frame: whether the mover is where it began

    @property
    def things(self) -> list[Thing]:
        return self.pictures[0]


def full(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def names(thing: Thing, things: list[Thing]) -> list[str]:
    """Every way to say which thing is meant, among these."""
    said = []
    if sum(t.shape == thing.shape for t in things) == 1:
        said.append(thing.shape)
    if sum(t.colour == thing.colour for t in things) == 1:
        said.append(f"{thing.colour} object")
    if sum(full(t) == full(thing) for t in things) == 1:
        said.append(full(thing))
    return said


def place(thing: Thing) -> str:
    """In which of nine thirds the centre lies."""
    row = "top" if thing.y < NEAR else "bottom" if thing.y > FAR else ""
    column = "left" if thing.x < NEAR else "right" if thing.x > FAR else ""
    return f"{row} {column}".strip() or "center"


def clear_place(thing: Thing) -> str:
    """Its place when that is one of the five we ask for and beyond doubt."""
    sure = min(abs(edge - at) for edge in (NEAR, FAR) for at in (thing.x, thing.y)) > 0.03
    return place(thing) if sure and place(thing) in PLACES else ""


def alone_at(draft: Draft) -> list[tuple[str, Thing]]:
    """Places that hold one thing, with nothing else near enough for doubt."""
    found = []
    for thing in draft.things:
        where = clear_place(thing)
        if where and all(t is thing or max(abs(t.x - thing.x), abs(t.y - thing.y)) > 0.3 for t in draft.things):
            found.append((where, thing))
    return found


def ask_shape(rng: Random, draft: Draft) -> Question | None:
    return _ask_trait(rng, draft, "shape", "colour")


def ask_colour(rng: Random, draft: Draft) -> Question | None:
    return _ask_trait(rng, draft, "colour", "shape")


def _ask_trait(rng: Random, draft: Draft, trait: str, other: str) -> Question | None:
    """Its shape or its colour; the thing is meant by the other of the two, by its place, or is the only one."""
    things = draft.things
    if len(things) == 1 and rng.random() < 0.5:
        return put(rng, trait, trait, getattr(things[0], trait))
    spots = alone_at(draft)
    if spots and rng.random() < 0.25:
        where, thing = rng.choice(spots)
        return put(rng, trait, f"{trait} at", getattr(thing, trait), a=where)
    return _ask_by(rng, things, trait, other)


def ask_look_up(rng: Random, draft: Draft) -> Question | None:
    """A colour by a shape, never by a place: what a small model learns late from a mixture, and soon on its own."""
    return _ask_by(rng, draft.things, "colour", "shape")


def _ask_by(rng: Random, things: list[Thing], trait: str, other: str) -> Question | None:
    single = [t for t in things if sum(getattr(u, other) == getattr(t, other) for u in things) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    called = thing.shape if other == "shape" else f"{thing.colour} {rng.choice(('object', 'object', 'thing', 'one'))}"
    return put(rng, trait, f"{trait} of", getattr(thing, trait), a=called)


def ask_count(rng: Random, draft: Draft) -> Question | None:
    tallies: dict[int, list[str]] = {}
    for shape, colour in product((*SHAPES, ""), (*COLOURS, "")):
        number = sum(t.shape == (shape or t.shape) and t.colour == (colour or t.colour) for t in draft.things)
        present = any(t.shape == shape or t.colour == colour for t in draft.things)
        if shape and colour and not present:
            continue  # nobody asks for what is absent twice over
        noun = plural(shape) if shape else rng.choice(("objects", "objects", "shapes", "things"))
        if not shape and not colour:
            if draft.texts:  # is a word an object?
                continue
            tallies.setdefault(number, []).extend([noun] * 8)
        else:
            tallies.setdefault(number, []).append(f"{colour} {noun}".strip())
    weights = {0: 0.3, 1: 0.45, 2: 0.9, 3: 1.6, 4: 2.4, 5: 3.4}
    number = rng.choices(list(tallies), [weights[n] for n in tallies])[0]
    return put(rng, "count", "count", str(number), a=rng.choice(tallies[number]))


def ask_exists(rng: Random, draft: Draft) -> Question | None:
    here = {name for t in draft.things for name in (t.shape, f"{t.colour} object", full(t))}
    if rng.random() < 0.5 and here:
        name, answer = rng.choice(sorted(here)), "yes"
    else:
        near = [f"{t.colour} {u.shape}" for t in draft.things for u in draft.things]
        near += [f"{t.colour} {shape}" for t in draft.things for shape in SHAPES]
        near += [f"{colour} {t.shape}" for t in draft.things for colour in COLOURS]
        every = [*SHAPES, *(f"{colour} object" for colour in COLOURS)]
        absent = [name for name in (near if near and rng.random() < 0.6 else every) if name not in here]
        if not absent:
            return None
        name, answer = rng.choice(absent), "no"
    return put(rng, "exists", "exists", answer, a=name, **{"as": plural(name)})


def ask_relation(rng: Random, draft: Draft) -> Question | None:
    things = draft.things
    pairs = []
    for a, b in permutations(things, 2):
        if not names(a, things) or not names(b, things):
            continue
        if abs(a.x - b.x) > APART:
            pairs.append((a, b, "left of" if a.x < b.x else "right of"))
        if abs(a.y - b.y) > APART:
            pairs.append((a, b, "above" if a.y < b.y else "below"))
    if not pairs:
        return None
    a, b, side = rng.choice(pairs)
    say = {"a": rng.choice(names(a, things)), "b": rng.choice(names(b, things))}
    if len(things) == 2 and rng.random() < 0.4:
        return put(rng, "relation", "which side", full(a), side=_side(rng, side), b=say["b"])
    truth = rng.random() < 0.5
    wrong = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    side = side if truth else wrong[side]
    return put(rng, "relation", "relation", "yes" if truth else "no", side=_side(rng, side), **say)


def _side(rng: Random, side: str) -> str:
    return f"to the {side}" if side.endswith("of") and rng.random() < 0.5 else side


def ask_size(rng: Random, draft: Draft) -> Question | None:
    things = [t for t in draft.things if full(t) in names(t, draft.things)]
    pairs = [(a, b) for a, b in permutations(things, 2) if a.r > b.r * SIZED]
    if not pairs:
        return None
    extremes = []
    for sign, word in ((1, "largest"), (-1, "smallest")):
        first, second = sorted(draft.things, key=lambda t: -sign * t.r)[:2]
        if max(first.r / second.r, second.r / first.r) > SIZED and first in things:
            extremes.append((first, word))
    if extremes and rng.random() < 0.4:
        thing, word = rng.choice(extremes)
        word = rng.choice(("largest", "biggest")) if word == "largest" else word
        return put(rng, "size", "largest", full(thing), largest=word)
    big, little = rng.choice(pairs)
    word, right = rng.choice((("larger", big), ("bigger", big), ("smaller", little), ("smaller", little)))
    a, b = rng.sample((big, little), 2)
    said = {key: rng.choice((full(t), *names(t, draft.things))) for key, t in (("a", a), ("b", b))} | {"larger": word}
    if rng.random() < 0.35:
        return put(rng, "size", "larger", "yes" if a is right else "no", **said)
    return put(rng, "size", "larger of", full(right), **said)


def ask_position(rng: Random, draft: Draft) -> Question | None:
    spots: dict[str, list[Thing]] = {}
    for thing in draft.things:
        if clear_place(thing) and names(thing, draft.things):
            spots.setdefault(clear_place(thing), []).append(thing)
    if not spots:
        return None
    where = rng.choice(list(spots))
    thing = rng.choice(spots[where])
    return put(rng, "position", "position", where, a=rng.choice(names(thing, draft.things)))


def ask_word(rng: Random, draft: Draft) -> Question | None:
    return _ask_text(rng, draft, "word", [t for t in draft.texts if not t.small and t.text.isalpha()])


def ask_digits(rng: Random, draft: Draft) -> Question | None:
    return _ask_text(rng, draft, "digits", [t for t in draft.texts if not t.small and t.text.isdigit()])


def ask_small_text(rng: Random, draft: Draft) -> Question | None:
    return _ask_text(rng, draft, "small_text", [t for t in draft.texts if t.small])


def _ask_text(rng: Random, draft: Draft, skill: str, texts: list[Text]) -> Question | None:
    if not texts:
        return None
    text = texts[0]  # a scene has at most one large and one small text, a word and a number
    forms = ["word" if text.text.isalpha() else "number"]
    size = rng.choice(("small", "small", "tiny")) if text.small else rng.choice(("large", "big"))
    if len(draft.texts) == 1:
        forms.append("text")
    if text.small or len(draft.texts) == 2:
        forms += [f"sized {forms[0]}", "sized text"]
    return put(rng, skill, rng.choice(forms), text.text, size=size)


def ask_spell(rng: Random, draft: Draft) -> Question | None:
    words = [t.text for t in draft.texts if t.text.isalpha()]
    return put(rng, "spell", "spell", " ".join(words[0])) if words else None


def ask_pair(rng: Random, draft: Draft) -> Question | None:
    first, second = draft.pictures
    options: list[Callable[[], Question]] = []

    def offer(form: str, answer: str, **said: str) -> None:
        options.append(lambda: put(rng, "pair", form, answer, **said))

    if len(first) == len(second) == 1:
        a, b = first[0], second[0]
        offer("same", "yes" if a.shape == b.shape else "no", a="shape")
        offer("same", "yes" if a.colour == b.colour else "no", a=rng.choice(("color", "colour")))
        nth, thing = rng.choice((("first", a), ("second", b)))
        offer("colour in", thing.colour, a=nth)
        offer("shape in", thing.shape, a=nth)
    else:
        more = "first" if len(first) > len(second) else "second" if len(first) < len(second) else "same"
        offer("more", more)
        offer("more", more)
        nth, things = rng.choice((("first", first), ("second", second)))
        offer("count in", str(len(things)), a=nth)
    nth, things, others = rng.choice((("first", first, second), ("second", second, first)))
    theirs = {name for t in others for name in (t.shape, f"{t.colour} object", full(t))}
    only = [name for t in things for name in names(t, things) if name not in theirs]
    if only:
        offer("which picture", nth, a=rng.choice(only))
    return rng.choice(options)()


def ask_motion(rng: Random, draft: Draft) -> Question | None:
    if draft.mover is None:
        return None
    if draft.act == "move" and rng.random() < 0.35:
        trait = rng.choice(("shape", "colour"))
        return put(rng, "motion", f"moving {trait}", getattr(draft.mover, trait))
    return put(rng, "motion", f"what {draft.act}s", full(draft.mover))


def ask_direction(rng: Random, draft: Draft) -> Question | None:
    if draft.act != "move" or draft.mover is None:
        return None
    return put(rng, "direction", "direction", draft.way, a=rng.choice(names(draft.mover, draft.things)))


def ask_times(rng: Random, draft: Draft) -> Question | None:
    if draft.act not in ("blink", "jump") or draft.mover is None:
        return None
    return put(rng, "times", draft.act, str(draft.times), a=rng.choice(names(draft.mover, draft.things)))


def ask_frames(rng: Random, draft: Draft) -> Question | None:
    if not draft.times or draft.mover is None:
        return None
    answer = " ".join("yes" if rests else "no" for rests in draft.rests)
    return put(rng, "frames", "frames", answer, a=rng.choice(names(draft.mover, draft.things)))


def ask_compare(rng: Random, draft: Draft) -> Question | None:
    things = [t for t in draft.things if names(t, draft.things)]
    if len(things) < 2:
        return None
    a, b = rng.sample(things, 2)
    across = "left" if b.x - a.x > APART else "right" if a.x - b.x > APART else ""
    down = "above" if b.y - a.y > APART else "below" if a.y - b.y > APART else ""
    say = {"a": rng.choice(names(a, draft.things)), "b": rng.choice(names(b, draft.things))}
    return put(rng, "compare", "compare", f"{across} {down}".strip(), **say) if across or down else None


def ask_describe(rng: Random, draft: Draft) -> Question | None:
    if draft.mover is not None:
        does = f"moves {draft.way}" if draft.act == "move" else f"{draft.act}s {draft.times}"
        return put(rng, "describe", "describe clip", f"{full(draft.mover)} {does}")
    rows = {"top": 0, "bottom": 2}
    ordered = sorted(draft.things, key=lambda t: (rows.get(place(t).split()[0], 1), t.x))
    said = [f"{'word' if t.text.isalpha() else 'number'} {t.text}" for t in draft.texts]
    said += [f"{full(t)} {place(t)}" for t in ordered]
    return put(rng, "describe", "describe", ", ".join(said)) if said else None


ASK: dict[str, Callable[[Random, Draft], Question | None]] = {
    "shape": ask_shape, "colour": ask_colour, "count": ask_count, "exists": ask_exists, "relation": ask_relation,
    "size": ask_size, "position": ask_position, "word": ask_word, "digits": ask_digits,
    "small_text": ask_small_text, "pair": ask_pair, "motion": ask_motion, "direction": ask_direction,
    "times": ask_times, "describe": ask_describe, "spell": ask_spell, "compare": ask_compare, "frames": ask_frames,
    "look_up": ask_look_up, "find": ask_position,
}
TRAINING_ONLY = ("describe", "spell", "compare", "frames", "look_up", "find")  # denser supervision, not measured
