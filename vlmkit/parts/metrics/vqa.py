"""VQA accuracy: right as far as people agree, min(people who say so / 3, 1), over every nine of ten people."""

from __future__ import annotations

import re

from vlmkit.contracts import Metric, PartConfig
from vlmkit.errors import DataError

FEWEST = 4  # with fewer, even full agreement would not be worth 1
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(n) for n, word in enumerate(NUMBERS)}
DIGITS["none"] = "0"
MARKS = ';/[]"{}()=+\\_-><@`,?!'
# Spellings with the apostrophe; the rule writes them so wherever one of theirs was left out.
SHORT = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
APOSTROPHES = {short[:at] + short[at + 1 :]: short for short in SHORT.split() for at, c in enumerate(short) if c == "'"}


class Config(PartConfig):
    """Nothing to choose."""


def line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def spelled(text: str) -> str:
    """Without punctuation and articles, numbers as digits, apostrophes in their places."""
    bare, comma = text, re.search(r"\d,\d", text)
    for mark in MARKS:
        loose = comma or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if loose else " ")
    words = [DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", bare).lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def agreement(answer: str, people: list[str]) -> float:
    """Mean over what all people but one say. Where all say the same, nothing but that very text is right."""
    if len(people) < FEWEST:
        raise DataError(f"{len(people)} answers of people to one question, at least {FEWEST} wanted",
                        where="metric vqa", hint="use exact where there is one right answer")
    answer, people = line(answer), [line(one) for one in people]
    if len(set(people)) > 1:
        answer, people = spelled(answer), [spelled(one) for one in people]
    same = [one == answer for one in people]
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)


def build(config: Config) -> Metric:
    def vqa(answers: list[str], references: list[list[str]]) -> float:
        pairs = zip(answers, references, strict=True)
        return sum(agreement(answer, people) for answer, people in pairs) / len(answers)

    return vqa


EXAMPLE: dict[str, object] = {}
