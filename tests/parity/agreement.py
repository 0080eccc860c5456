"""What both parity suites ask of one model of ours and of transformers' model with the same weights."""

import small
import theirs
import torch

import vlmkit
from vlmkit.parts.towers.timm import normalise


def as_transformers(name, model, process, conversations, read):
    """The same ids and pixels, logits within 1e-5 and 32 greedy tokens.   read: what their processor gives"""
    batch = process(conversations)
    real = read["attention_mask"].bool()
    assert batch.lens.tolist() == real.sum(1).tolist()
    assert batch.ids.tolist() == read["input_ids"][real].tolist()
    same_pixels(batch, read, model)

    with torch.inference_mode():
        places = (real.cumsum(1) - 1).clamp(min=0)  # as their generate does; forward alone would count the padding
        wanted = theirs.model(name)(**read, position_ids=places).logits[real]
        found = model.logits(model(batch))
    assert wanted.std() > 0.3  # the weights are drawn so that there is something to compare
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    spare = list(range(small.WORDS, small.VOCAB))  # rows of the embedding that are no token
    answers = theirs.model(name).generate(**read, max_new_tokens=32, do_sample=False, suppress_tokens=spare)
    said = vlmkit.generate(model, process, conversations, max_new_tokens=32, ignore_eos=True, details=True)
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
