"""A folder that transformers saved gives transformers' ids, pixels, logits and answers, in every family."""

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

import folders  # noqa: E402
import small  # noqa: E402
import theirs  # noqa: E402
from small import Talk, clip, picture  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.parts.towers.timm import normalise  # noqa: E402

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
    batch, read = process(folders.ours(talks)), folders.read(name, folder, talks)

    real = read["attention_mask"].bool()
    assert batch.lens.tolist() == real.sum(1).tolist()
    assert batch.ids.tolist() == read["input_ids"][real].tolist()
    same_pixels(batch, read, model)

    with torch.inference_mode():
        places = (real.cumsum(1) - 1).clamp(min=0)  # as their generate does; forward alone would count the padding
        wanted = theirs.model(name)(**read, position_ids=places).logits[real]
        found = model.logits(model(batch))
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    spare = list(range(small.WORDS, small.VOCAB))  # rows of the embedding that are no token
    answers = theirs.model(name).generate(**read, max_new_tokens=32, do_sample=False, suppress_tokens=spare)
    said = vlmkit.generate(model, process, folders.ours(talks), max_new_tokens=32, ignore_eos=True, details=True)
    assert [answer.ids for answer in said] == answers[:, real.shape[1]:].tolist()


def same_pixels(batch, read, model):
    """What our tower makes of its bytes is, bit for bit, what their processor gives; tiles of padding left out."""
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pixels = [visual.pixels for visual in batch.visuals if visual.layout.kind == kind]
        assert bool(pixels) == (key in read)
        for own, their in zip(pixels, read.get(key, []), strict=True):
            their = their if their.ndim == 4 else their[None]
            assert torch.equal(normalise(own, model.tower.mean, model.tower.std), their[: len(own)])
            assert not their[len(own):].any()
