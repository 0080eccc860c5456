"""A folder that transformers saved gives transformers' ids, pixels, logits and answers, in every family."""

import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

import agreement  # noqa: E402
import folders  # noqa: E402
from small import Talk, clip, picture  # noqa: E402

import vlmkit  # noqa: E402

A, B, C = picture(48, 64, 1), picture(70, 33, 2), picture(60, 200, 3)
ASK = "<image>\nWhat is in it?"
TALKS = {
    "one": Talk((ASK,), (A,)),
    "wide": Talk((ASK,), (C,)),
    "two": Talk(("See <image>\nand then <image>\n: same?",), (B, A)),
    "turns": Talk((ASK, "A cat.", "And in <image>\n?"), (A, B)),
    "text": Talk(("What is a cat?",)),
    "clip": Talk(("<video>\nWhat is in it?",), (clip(8),)),
    "both": Talk(("<image>\n<video>\nWhat is in it?", "A cat.", "Sure?"), (A, clip(8, 81, 50, 3))),
}
CASES = [
    *[(name, talks) for name in folders.CHATS for talks in ("one", "text turns one two")],
    *[(name, talks) for name in ("next-video", "onevision", "video-llava")
      for talks in ("clip", "wide both text clip")],
    ("onevision", "two"), ("next", "wide"), ("next-video", "both"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> its folder, made once; what is loaded from it."""
    made = {}

    def load(name):
        if name not in made:
            folder = folders.save(name, tmp_path_factory.mktemp(name))
            made[name] = folder, *vlmkit.load(folder, attention="eager")
        return made[name]

    return load


@pytest.mark.parametrize(("name", "talks"), CASES)
def test_as_transformers(name, talks, saved):
    folder, model, process = saved(name)
    talks = [TALKS[talk] for talk in talks.split()]
    agreement.as_transformers(name, model, process, folders.ours(talks), folders.read(name, folder, talks))
