"""How questions are put: for every form several wordings, with the synonyms and habits people have."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

WORDS = ("cat", "dog", "sun", "car", "hat", "cup", "bus", "box", "fish", "bird", "tree", "moon", "milk", "book",
         "door", "hand", "rain", "ship", "lamp", "king")
NUMBERS = range(100)
PLACES = ("top left", "top right", "bottom left", "bottom right", "center")
WAYS = ("left", "right", "up", "down")


class Question(NamedTuple):
    skill: str
    text: str
    answer: str


SYNONYMS = {
    "pic": ("picture", "picture", "image"), "pics": ("pictures", "pictures", "images"),
    "colour": ("color", "color", "colour"), "object": ("object", "object", "thing"),
    "objects": ("objects", "objects", "shapes", "things"), "clip": ("video", "clip"),
    "large": ("large", "big"), "larger": ("larger", "bigger"), "largest": ("largest", "biggest"),
}
LONG = ("describe", "spell", "compare", "frames")  # answers of several words
SUFFIXES = (" Answer with one word.", " Use one word.", " Answer briefly.")

# A form's wordings. {a} and {b} name things, {an} is a or an; a trailing "." replaces the question mark.
FORMS = {
    "shape of": ("what shape is the {a}?", "which shape is the {a}?", "what is the shape of the {a}?",
                 "what shape does the {a} have?", "name the shape of the {a}."),
    "shape": ("what shape is it?", "what shape is this?", "what shape is shown?", "what shape is in the {pic}?",
              "which shape do you see?", "what is the shape of the object?", "what shape is the object?"),
    "shape at": ("what shape is in the {a}?", "which shape is at the {a}?", "what shape is the object in the {a}?",
                 "what is the shape of the object at the {a}?", "what shape do you see in the {a}?"),
    "colour of": ("what {colour} is the {a}?", "which {colour} is the {a}?", "what is the {colour} of the {a}?",
                  "what {colour} does the {a} have?", "name the {colour} of the {a}."),
    "colour": ("what {colour} is it?", "what {colour} is this?", "what {colour} is the object?",
               "which {colour} do you see?", "what is the {colour} of the object?", "what {colour} is shown?"),
    "colour at": ("what {colour} is the object in the {a}?", "which {colour} is the object at the {a}?",
                  "what is the {colour} of the object in the {a}?", "what {colour} is in the {a}?",
                  "what {colour} do you see at the {a}?"),
    "count": ("how many {a} are there?", "how many {a} are in the {pic}?", "how many {a} do you see?",
              "how many {a} can you see?", "count the {a}.", "what is the number of {a}?",
              "how many {a} does the {pic} show?"),
    "exists": ("is there {an} {a}?", "is there {an} {a} in the {pic}?", "do you see {an} {a}?",
               "can you see {an} {a}?", "does the {pic} show {an} {a}?", "does the {pic} contain {an} {a}?",
               "are there any {as}?", "are there any {as} in the {pic}?"),
    "relation": ("is the {a} {side} the {b}?", "is the {a} located {side} the {b}?",
                 "in the {pic}, is the {a} {side} the {b}?", "is it true that the {a} is {side} the {b}?",
                 "does the {a} lie {side} the {b}?"),
    "which side": ("which object is {side} the {b}?", "what is {side} the {b}?", "what object is {side} the {b}?",
                   "what do you see {side} the {b}?", "name the object {side} the {b}."),
    "larger of": ("which is {larger}, the {a} or the {b}?", "what is {larger}, the {a} or the {b}?",
                  "which object is {larger}, the {a} or the {b}?", "is the {a} or the {b} {larger}?",
                  "of the {a} and the {b}, which is {larger}?"),
    "larger": ("is the {a} {larger} than the {b}?", "is it true that the {a} is {larger} than the {b}?",
               "in the {pic}, is the {a} {larger} than the {b}?", "does the {a} look {larger} than the {b}?",
               "is the size of the {a} {larger} than the {b}?"),
    "largest": ("what is the {largest} object?", "which object is the {largest}?", "which object is {largest}?",
                "name the {largest} object.", "what is the {largest} object in the {pic}?"),
    "position": ("where is the {a}?", "where is the {a} in the {pic}?", "in which part of the {pic} is the {a}?",
                 "what is the position of the {a}?", "where do you see the {a}?", "where is the {a} located?"),
    "word": ("what word is written?", "what word is written in the {pic}?", "which word do you see?",
             "read the word.", "what is the word?", "what word is shown?", "what word is in the {pic}?"),
    "text": ("what does the text say?", "what is written?", "read the text.", "what does the {pic} say?",
             "what is written in the {pic}?"),
    "number": ("what number is written?", "which number is shown?", "read the number.", "what is the number?",
               "what number do you see?", "what number is in the {pic}?", "which number is written in the {pic}?"),
    "sized word": ("what is the {size} word?", "what {size} word is written?", "read the {size} word.",
                   "what word is written in {size} letters?", "which {size} word do you see?"),
    "sized text": ("what does the {size} text say?", "read the {size} text.", "what is the {size} text?",
                   "what is written in {size} letters?", "what {size} text do you see?"),
    "sized number": ("what is the {size} number?", "what {size} number is written?", "read the {size} number.",
                     "which {size} number is shown?", "what {size} number do you see?"),
    "spell": ("spell the word.", "spell the text.", "spell what is written.", "what are the letters?",
              "name the letters."),
    "more": ("which {pic} has more {objects}?", "which {pic} shows more {objects}?",
             "which of the two {pics} has more {objects}?", "in which {pic} are there more {objects}?",
             "are there more {objects} in the first or the second {pic}?"),
    "same": ("do both {pics} show the same {a}?", "is the {a} the same in both {pics}?",
             "do the two {pics} show the same {a}?", "do the {pics} have the same {a}?",
             "is the {a} in the first {pic} the same as in the second {pic}?"),
    "shape in": ("what shape is the object in the {a} {pic}?", "what shape is in the {a} {pic}?",
                 "what is the shape of the object in the {a} {pic}?", "which shape does the {a} {pic} show?",
                 "what shape do you see in the {a} {pic}?"),
    "colour in": ("what {colour} is the object in the {a} {pic}?", "what {colour} is in the {a} {pic}?",
                  "what is the {colour} of the object in the {a} {pic}?",
                  "which {colour} does the {a} {pic} show?", "what {colour} do you see in the {a} {pic}?"),
    "count in": ("how many {objects} are in the {a} {pic}?", "how many {objects} does the {a} {pic} show?",
                 "how many {objects} do you see in the {a} {pic}?", "count the {objects} in the {a} {pic}.",
                 "what is the number of {objects} in the {a} {pic}?"),
    "which picture": ("in which {pic} is the {a}?", "which {pic} shows the {a}?", "which {pic} has {an} {a}?",
                      "which {pic} contains {an} {a}?", "in which {pic} do you see {an} {a}?"),
    "what moves": ("what moves?", "what is moving?", "which {object} moves?", "what moves in the {clip}?",
                   "which {object} is moving in the {clip}?", "name the moving {object}."),
    "what blinks": ("what blinks?", "what is blinking?", "which {object} blinks?", "what blinks in the {clip}?",
                    "which {object} is blinking in the {clip}?", "name the blinking {object}."),
    "what jumps": ("what jumps?", "what is jumping?", "which {object} jumps?", "what jumps in the {clip}?",
                   "which {object} is jumping in the {clip}?", "name the jumping {object}."),
    "moving shape": ("what shape is moving?", "which shape moves?", "what shape is the moving object?",
                     "what is the shape of the moving object?", "what shape moves in the {clip}?"),
    "moving colour": ("what {colour} is the moving object?", "which {colour} is the moving object?",
                      "what is the {colour} of the moving object?", "what {colour} is the object that moves?",
                      "what {colour} is moving?"),
    "direction": ("which way does the {a} move?", "in which direction does the {a} move?",
                  "where does the {a} move?", "in what direction is the {a} moving?",
                  "which way is the {a} going?", "what is the direction of the {a}?"),
    "blink": ("how many times does the {a} blink?", "how often does the {a} blink?",
              "how many times did the {a} blink?", "count how many times the {a} blinks.",
              "in the {clip}, how many times does the {a} blink?"),
    "jump": ("how many times does the {a} jump?", "how often does the {a} jump?",
             "how many times did the {a} jump?", "count how many times the {a} jumps.",
             "in the {clip}, how many times does the {a} jump?"),
    "compare": ("where is the {a}, seen from the {b}?", "on which side of the {b} is the {a}?",
                "from the {b}, where is the {a}?", "compare the place of the {a} with the {b}.",
                "how does the {a} lie to the {b}?"),
    "frames": ("frame by frame, is the {a} in its place?", "is the {a} where it began in each frame?",
               "when is the {a} in its place?", "in which frames of the {clip} is the {a} in its place?",
               "tell frame by frame whether the {a} is in its place."),
    "describe": ("describe the {pic}.", "describe this {pic}.", "what is in the {pic}?", "what do you see?",
                 "list the {objects}.", "list all {objects} in the {pic}."),
    "describe clip": ("describe the {clip}.", "describe this {clip}.", "what happens?",
                      "what happens in the {clip}?", "what do you see in the {clip}?"),
}


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def put(rng: Random, skill: str, form: str, answer: str, **names: str) -> Question:
    """A question in one of its wordings."""
    given = {key: rng.choice(words) for key, words in SYNONYMS.items()} | names
    text = rng.choice(FORMS[form]).format(**given, an=article(names["a"]) if "a" in names else "")
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    if rng.random() < 0.1 and text[-1] in "?." and skill not in LONG:
        text += rng.choice(SUFFIXES)
    return Question(skill, text, answer)
