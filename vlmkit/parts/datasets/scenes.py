"""The drawn world that `tiny` lives in: pictures, pairs and clips with questions and answers, made from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError

from . import plans
from .drawing import Look, Thing, film, paint
from .questions import ASK, TRAINING_ONLY, Draft
from .wordings import Question

HELD_OUT = 2**40  # seeds from here on are never trained on
SKILLS = tuple(skill for skill in ASK if skill not in TRAINING_ONLY)  # those that are measured
KINDS = {"objects": 0.42, "text": 0.3, "pair": 0.08, "clip": 0.2}
# What is asked about a scene of each kind, and how often.
ABOUT: dict[str, dict[str, float]] = {
    "objects": {"shape": 1, "colour": 4, "count": 1.5, "exists": 1, "relation": 3, "size": 2, "position": 3,
                "look_up": 0, "find": 0},  # only where they are named
    "text": {"word": 3, "digits": 3, "small_text": 4, "shape": 0.5, "colour": 0.5, "exists": 0.3, "position": 0.5},
    "pair": {"pair": 1},
    "clip": {"motion": 1.5, "direction": 1, "times": 1.5, "count": 0.3, "exists": 0.2},
}
# Asked last, since they give the other answers away, and how often: a description teaches more than one word does.
LAST: dict[str, dict[str, float]] = {
    "objects": {"compare": 1.8, "describe": 0.9}, "text": {"spell": 0.3, "describe": 0.7},
    "clip": {"frames": 0.9, "describe": 0.4}, "pair": {},
}
# At most so many of one skill, and for some no answer twice: it would be the same question in other words.
MOST = {"word": 2, "digits": 2, "small_text": 2, "times": 2, "direction": 2, "exists": 1,
        "relation": 3, "size": 3}
ONCE = ("shape", "colour", "count", "position", "motion")
TRIES = 200


class Scene(NamedTuple):
    """What is shown, and what can be asked about it.   clip: uint8 [frames, height, width, 3]"""

    pictures: list[Image]
    clip: NDArray[Any] | None
    questions: list[Question]


class Config(PartConfig):
    """Conversations about drawn scenes. The same fields, and the same fonts on the machine, give the same scenes."""

    skills: tuple[str, ...] | None = Field(None, description="one of these in turn for each scene; null mixes all")
    seed: int = Field(0, ge=0, description="the seed of the first scene; the next scenes have the next seeds")
    count: int = Field(1000, ge=1, description="how many scenes")
    turns: int = Field(1, ge=1, le=64, description="most questions about one scene")
    split: Literal["train", "test"] = Field("train", description="seeds below 2**40, or those from there on")


class Scenes:
    """Conversations, drawn as they are asked for."""

    ordered = True  # every scene is another one already; they come in the order of their seeds

    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return conversation(self.draw(index))

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (self[index] for index in range(len(self)))

    def draw(self, index: int) -> Scene:
        """The scene itself, with the skills of its questions."""
        config = self.config
        seed = config.seed + index + (HELD_OUT if config.split == "test" else 0)
        skill = config.skills[index % len(config.skills)] if config.skills else None
        return scene(seed, skill, config.turns)


def scene(seed: int, skill: str | None = None, turns: int = 1) -> Scene:
    """One scene, the same for the same seed; `turns` is the most questions, all of one skill when it is named."""
    rng = Random(f"{seed} {skill or ''}")
    kind = _kind(rng, skill)
    for _ in range(TRIES):
        planned = _plan(rng, kind, skill)
        if planned is None:
            continue
        draft, looks, path = planned
        questions = _questions(rng, draft, skill, turns)
        if not questions:
            continue
        if path:
            still = [thing for thing in draft.things if thing is not draft.mover]
            return Scene([], film(looks[0], still, path), questions)
        pictures = [paint(look, things, draft.texts) for look, things in zip(looks, draft.pictures, strict=True)]
        return Scene(pictures, None, questions)
    raise DataError(f"no scene in {TRIES} tries for seed {seed}, skill {skill}")


def _kind(rng: Random, skill: str | None) -> str:
    if skill is None:
        return rng.choices(list(KINDS), list(KINDS.values()))[0]
    return next(kind for kind in KINDS if skill in ABOUT[kind] or skill in LAST[kind])


def _plan(rng: Random, kind: str, skill: str | None) -> tuple[Draft, list[Look], list[Thing | None]] | None:
    if kind == "clip":
        return plans.clip(rng, skill)
    planned = plans.pair(rng) if kind == "pair" else (plans.texts if kind == "text" else plans.objects)(rng, skill)
    return planned and (*planned, [])


def _questions(rng: Random, draft: Draft, skill: str | None, turns: int) -> list[Question]:
    """Different questions about one scene; skills that it says nothing about fall away."""
    about = {skill: 1.0} if skill else {name: share for name, share in ABOUT[draft.kind].items() if share}
    asked: list[Question] = []
    for _ in range(turns * 3):
        if len(asked) == turns or not about:
            break
        name = rng.choices(list(about), list(about.values()))[0]
        question = ASK[name](rng, draft)
        if question is None:
            del about[name]
        elif not any(_same(question, other) for other in asked):
            asked.append(question)
        if not skill and sum(q.skill == name for q in asked) >= MOST.get(name, turns):
            about.pop(name, None)
    last = {} if skill or turns == 1 else LAST[draft.kind]
    more = [ASK[name](rng, draft) for name, share in last.items()
            for _ in range(int(share) + (rng.random() < share % 1))]
    return [*asked, *(question for question in more if question)]


def _same(a: Question, b: Question) -> bool:
    return a.text == b.text or (a.skill == b.skill and a.skill in ONCE and a.answer == b.answer)


def conversation(scene: Scene) -> list[dict[str, Any]]:
    """Messages as `processor` takes them; what is shown comes with the first question."""
    shown: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in scene.pictures]
    if scene.clip is not None:
        shown.append({"type": "video", "video": scene.clip})
    messages: list[dict[str, Any]] = []
    for question in scene.questions:
        text = {"type": "text", "text": question.text}
        # people put what they show before their words, mostly
        content = [text, *shown] if len(question.text) % 7 == 0 else [*shown, text]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
        shown = []
    return messages


def build(config: Config) -> Scenes:
    unknown = set(config.skills or ()) - set(ASK)
    if unknown or config.skills == ():
        raise DataError(f"no skill {', '.join(sorted(unknown))}" if unknown else "an empty list of skills",
                        where="skills", hint=f"choose from {', '.join(ASK)}")
    if config.seed + config.count > HELD_OUT:
        raise DataError(f"seeds up to {config.seed + config.count}, at most 2**40 wanted", where="seed")
    return Scenes(config)


EXAMPLE: dict[str, Any] = {"count": 2, "turns": 3}
