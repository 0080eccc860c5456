"""The drawn world: the same from the same seed, right by an independent look at the pixels, fair in its answers."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from vlmkit.errors import DataError
from vlmkit.parts.datasets import lettering, scenes
from vlmkit.parts.datasets.drawing import COLOURS, REACH, SHAPES, Look, Thing, paint, tint
from vlmkit.parts.datasets.plans import objects, picture_size, things
from vlmkit.parts.datasets.questions import ASK, Draft, names, place
from vlmkit.parts.datasets.scenes import HELD_OUT, SKILLS, Config, Scene, build, scene
from vlmkit.parts.datasets.wordings import FORMS, NUMBERS, PLACES, WAYS, WORDS

ROOT = Path(__file__).parents[2]
NAMES = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
YES = {"yes", "no"}
ANSWERS = {
    "shape": set(SHAPES), "colour": set(COLOURS), "count": set("012345"), "exists": YES, "relation": YES | NAMES,
    "size": YES | NAMES, "position": set(PLACES), "word": set(WORDS), "digits": {str(n) for n in NUMBERS},
    "small_text": set(WORDS) | {str(n) for n in NUMBERS},
    "pair": YES | {"first", "second", "same"} | set(SHAPES) | set(COLOURS) | set("01234"),
    "motion": NAMES | set(SHAPES) | set(COLOURS), "direction": set(WAYS), "times": set("123"),
}


@cache
def drawn(skill: str, number: int = 150) -> list[Scene]:
    return [scene(HELD_OUT + seed, skill) for seed in range(number)]


@pytest.mark.parametrize("skill", [None, *ASK])
def test_one_seed_is_one_scene(skill: str | None) -> None:
    first, again = scene(77, skill, 4), scene(77, skill, 4)
    assert first.questions == again.questions
    assert [p.tobytes() for p in first.pictures] == [p.tobytes() for p in again.pictures]
    assert (first.clip is None) == (again.clip is None)
    assert first.clip is None or (first.clip == again.clip).all()
    assert scene(78, skill, 4).questions != first.questions


@pytest.mark.parametrize("skill", SKILLS)
def test_asks_for_the_skill_and_answers_from_its_list(skill: str) -> None:
    for one in drawn(skill):
        (question,) = one.questions
        assert question.skill == skill
        assert question.answer in ANSWERS[skill]
        assert len(one.pictures) == (2 if skill == "pair" else 0 if one.clip is not None else 1)
        if one.clip is not None:
            assert one.clip.dtype == np.uint8
            assert one.clip.shape[0] == 8
            assert one.clip.shape[3] == 3


@pytest.mark.parametrize("skill", SKILLS)
def test_no_answer_can_be_guessed(skill: str) -> None:
    """A yes or no is nearly even; elsewhere no answer has much more than its share."""
    told = Counter(one.questions[0].answer for one in drawn(skill))
    if told["yes"]:
        assert abs(told["yes"] - told["no"]) < 3 * (told["yes"] + told["no"]) ** 0.5  # three deviations of a fair coin
    assert max(told.values()) / sum(told.values()) < {"exists": 0.6, "times": 0.5, "direction": 0.4}.get(skill, 0.45)


def test_zero_is_rare_and_five_is_not() -> None:
    told = Counter(one.questions[0].answer for one in drawn("count"))
    assert told["0"] < told["2"] + 10
    assert min(told[n] for n in "12345") > 8


def test_mixed_scenes_ask_about_everything() -> None:
    asked = Counter(q.skill for seed in range(250) for q in scene(seed, None, 8).questions)
    assert set(asked) == set(ASK) - {"look_up", "find"}
    assert asked.most_common(1)[0][1] < 0.2 * sum(asked.values())


def test_looking_up_names_a_shape_and_wants_its_colour() -> None:
    asked = [q for seed in range(20) for q in scene(seed, "look_up", 6).questions]
    assert all(q.skill == "colour" and q.answer in COLOURS for q in asked)
    assert all(any(shape in q.text.lower() for shape in SHAPES) for q in asked)


def plain(drawn_things: list[Thing], side: int = 128) -> np.ndarray:
    look = Look(side, side, 1, ((255, 255, 255),) * 2, "plain", (0, 0, 0), (0, 0, 0), 1)
    return np.asarray(paint(look, drawn_things)).astype(float)


def colour_named(pixel: np.ndarray) -> str:
    """By hue and brightness alone, as the document says."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    if saturation < 0.3 or value < 0.3:
        return ""
    hue *= 360
    borders = ((13, "red"), (45, "orange"), (75, "yellow"), (180, "green"), (255, "blue"), (330, "purple"))
    return next((name for edge, name in borders if hue < edge), "red")


@pytest.mark.parametrize("seed", range(12))
def test_pixels_show_what_the_plan_says(seed: int) -> None:
    """On white: every thing's colour, centre and extent are found again in the pixels, and nothing else is there."""
    rng = Random(seed)
    planned = None
    while planned is None:
        planned = things(rng, 1 + seed % 5, 1.0, 1.0)
    pixels = plain([t._replace(edge=0.0) for t in planned])
    rows, columns = np.indices(pixels.shape[:2])
    left = np.abs(pixels - 255).sum(-1) > 0
    for thing in planned:
        reach = thing.r * REACH[thing.shape] * 128 + 1.5
        near = np.hypot(columns + 0.5 - thing.x * 128, rows + 0.5 - thing.y * 128) < reach
        mine = left & near
        assert colour_named(np.median(pixels[mine], 0)) == thing.colour
        assert abs(columns[mine].mean() + 0.5 - thing.x * 128) < 0.2 * thing.r * 128 + 1
        assert mine.sum() > 1.5 * (thing.r * 128) ** 2
        left &= ~near
    assert not left.any()  # nothing reaches beyond its own circle, so nothing overlaps


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_keep_their_names(colour: str) -> None:
    rng = Random(colour)
    assert {colour_named(np.array(tint(rng, colour), float)) for _ in range(200)} == {colour}


def ask(skill: str, draft: Draft, times: int = 60) -> dict[str, str]:
    rng = Random(5)
    asked = [ASK[skill](rng, draft) for _ in range(times)]
    return {q.text.lower(): q.answer for q in asked if q}


def test_noise_covers_the_tallest_and_widest_picture() -> None:
    for seed in range(0, 2**15, 499):
        width, height = ((160, 336), (336, 160), (320, 320))[seed % 3]
        look = Look(width, height, 1, ((0, 0, 0),) * 2, "plain", (0, 0, 0), (0, 0, 0), seed, noise=3.0)
        assert paint(look, []).size == (width, height)


def test_a_worked_example() -> None:
    """A large red circle top left, a small blue star bottom right, a small blue circle top right."""
    draft = Draft("objects", [[Thing("circle", "red", 0.25, 0.2, 0.2), Thing("star", "blue", 0.8, 0.8, 0.1),
                               Thing("circle", "blue", 0.75, 0.25, 0.1)]])
    for text, answer in ask("count", draft).items():
        said = re.search(f"({'|'.join(COLOURS)})? ?({'|'.join(SHAPES)}|object|shape|thing)e?s", text)
        assert said, text
        told = {(None, "circle"): 2, (None, "star"): 1, ("blue", "circle"): 1, ("red", "circle"): 1,
                ("blue", "star"): 1, ("red", None): 1, ("blue", None): 2, (None, None): 3}
        kind = None if said[2] in ("object", "shape", "thing") else said[2]
        assert answer == str(told.get((said[1], kind), 0)), text
    assert set(ask("shape", draft).values()) <= {"circle", "star"}
    assert all(answer == "circle" for text, answer in ask("shape", draft).items() if "red" in text)
    wheres = ask("position", draft)
    assert all(answer == "top left" for text, answer in wheres.items() if "red" in text)
    assert all(answer == "bottom right" for text, answer in wheres.items() if "star" in text)
    for text, answer in ask("size", draft).items():
        if "largest" in text or "biggest" in text:
            assert answer == "red circle"
        if "smallest" in text:
            pytest.fail("two things are equally small")
    for text, answer in ask("relation", draft).items():
        if "red object" in text and "star" in text and "left" in text:
            assert answer == ("yes" if text.index("red") < text.index("star") else "no")


def test_names_tell_apart() -> None:
    a, b, c = Thing("circle", "red", 0, 0, 1), Thing("star", "red", 0, 0, 1), Thing("circle", "blue", 0, 0, 1)
    assert names(a, [a, b, c]) == ["red circle"]
    assert names(b, [a, b, c]) == ["star", "red star"]
    assert names(a, [a, a]) == []


@pytest.mark.parametrize(("x", "y", "said"), [(0.1, 0.1, "top left"), (0.5, 0.1, "top"), (0.9, 0.5, "right"),
                                              (0.5, 0.5, "center"), (0.9, 0.9, "bottom right")])
def test_places(x: float, y: float, said: str) -> None:
    assert place(Thing("star", "red", x, y, 0.1)) == said


def moved(clip: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Where two frames differ: rows, columns."""
    return np.nonzero(np.abs(clip[first].astype(int) - clip[last].astype(int)).sum(-1) > 120)


def test_the_way_is_seen_in_the_frames() -> None:
    """The mover leaves one place for another: colours of the first frame are missed where it was."""
    right = 0
    for one in drawn("direction"):
        assert one.clip is not None
        still = np.median(one.clip.astype(int), 0)  # what moves is nowhere for long
        spots = []
        for frame in (one.clip[0], one.clip[-1]):
            rows, columns = np.nonzero(np.abs(frame - still).sum(-1) > 120)
            spots.append((rows.mean(), columns.mean()) if len(rows) > 4 else (np.nan, np.nan))
        (y0, x0), (y1, x1) = spots
        way = max((("right", x1 - x0), ("left", x0 - x1), ("down", y1 - y0), ("up", y0 - y1)), key=lambda at: at[1])[0]
        right += way == one.questions[0].answer
    assert right > 0.85 * len(drawn("direction"))  # a large thing that moves little hides its own median


def test_blinks_are_counted_in_the_frames() -> None:
    """Frames like the first show the thing; runs of frames unlike it are blinks or jumps."""
    right = 0
    for one in drawn("times"):
        assert one.clip is not None
        away = [len(moved(one.clip, 0, frame)[0]) > 25 for frame in range(8)]
        right += str(sum(b and not a for a, b in pairwise(away))) == one.questions[0].answer
    assert right > 0.9 * len(drawn("times"))  # noise hides a few from this simple eye


def test_small_text_has_few_pixels() -> None:
    """Capitals of 8.5 to 11.5 pixels in a picture of 128: half of that in the whole-picture tile of 64."""
    rng = Random(3)
    for _ in range(40):
        mask = lettering.letters(rng, "H7", 11, 90, plain=True, smooth=True)
        assert 7 <= mask.height <= 15


def test_pillows_own_font_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "fonts", lambda: ("",))
    for skill in ("word", "digits", "small_text"):
        assert [scene(seed, skill).questions[0].answer for seed in range(20)]


def test_sizes_and_shapes_of_pictures() -> None:
    rng = Random(1)
    sizes = [picture_size(rng) for _ in range(500)]
    assert min(min(size) for size in sizes) >= 96
    assert 300 < max(max(size) for size in sizes) <= 336
    ratios = [w / h for w, h in sizes]
    assert 0.04 < np.mean([r > 1.4 for r in ratios]) < 0.2
    assert 0.04 < np.mean([r < 0.7 for r in ratios]) < 0.2


def test_objects_keep_to_the_picture() -> None:
    rng = Random(2)
    plans = [objects(rng, "count") for _ in range(200)]
    for thing in (t for plan in plans if plan for t in plan[0].things):
        assert 0 < thing.x < 1
        assert 0 < thing.y < 1


def test_conversations_are_messages() -> None:
    data = build(Config(count=30, turns=3, split="test"))
    assert len(data) == 30
    kinds = set()
    for talk in data:
        assert [m["role"] for m in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert [len(m["content"]) for m in talk[1:]] == [1] * (len(talk) - 1)
        kinds |= {part["type"] for part in talk[0]["content"]}
    assert kinds == {"image", "video", "text"}
    assert data[3][1] == build(Config(count=30, turns=3, split="test"))[3][1]
    assert data.draw(0).questions == scene(HELD_OUT, None, 3).questions


def test_seeds_of_training_and_test_never_meet() -> None:
    with pytest.raises(DataError, match="2\\*\\*40"):
        build(Config(seed=HELD_OUT - 5, count=10))
    with pytest.raises(DataError, match="juggling"):
        build(Config(skills=("shape", "juggling")))


def test_the_document_shows_the_whole_world() -> None:
    """Strangers draw and ask by this page: every wording and every answer is on it."""
    page = (ROOT / "docs" / "tiny-world.md").read_text("utf-8")
    missing = [wording for wordings in FORMS.values() for wording in wordings if f"`{wording}`" not in page]
    assert not missing
    assert all(len(wordings) >= 5 for wordings in FORMS.values())
    for word in (*WORDS, *SHAPES, *COLOURS, *PLACES, *WAYS, *ASK):
        assert word in page
    assert scenes.EXAMPLE
