"""A batch gives each conversation what it would get alone, whatever stands beside it and wherever its pictures are."""

import random
from functools import cache

import pytest
import small
import torch
from small import Talk, clip, picture

import vlmkit
from vlmkit.errors import ShapeError

A, B, C = picture(48, 64, 1), picture(70, 33, 2), picture(33, 120, 3)
ONE = Talk(("<image>\nWhat is in it?",), (A,))
EIGHT = [  # as unequal as they come
    Talk(("Hello",)),
    ONE,
    Talk(("<image>\n<image>\n<image>\nWhat is new?",), (A, B, C)),
    Talk(("<video>\nWhat is in it?",), (clip(8),)),
    Talk(("See <image>\nand then <video>\n, then say.",), (B, clip(3, 40, 90, 1))),
    Talk(("Hi.", "Hello.", "What is a cat?", "A pet.", "And what is in it: <image>\n?"), (C,)),
    Talk(("<image>\nWhat?", "A cat.", "Is it in <video>\n?", "No.", "And <image>\n?"), (B, clip(5), A)),
    Talk(("<video>\n<video>\nSame?", "Yes.", "Sure?"), (clip(2), clip(2, 50, 50, 2))),
]
FAMILIES = ["next-video", "onevision", "video-llava", "llava-video"]
STILL = ["llava", "next", "bakllava", "interleave"]


@cache
def processor(name):
    return small.processor(name)


def logits(name, talks):
    """One tensor for each conversation.   list of [its length, vocab]"""
    batch = processor(name)([talk.messages for talk in talks])
    with torch.inference_mode():
        return small.model(name).logits(small.model(name)(batch)).split(batch.lens.tolist())


def answers(name, talks):
    return vlmkit.generate(small.model(name), processor(name), [talk.messages for talk in talks], max_new_tokens=16,
                           ignore_eos=True, details=True)


def eight(name):
    return EIGHT if name in FAMILIES else [talk for talk in EIGHT if not talk.clips]


@pytest.mark.parametrize("name", FAMILIES + STILL)
def test_eight_at_once_are_eight_one_by_one(name):
    talks = eight(name)
    together = logits(name, talks)
    alone = [logits(name, [talk])[0] for talk in talks]
    assert len({len(each) for each in alone}) == len(talks)  # unequal indeed
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_do_not_depend_on_the_company(name):
    talks = EIGHT
    together = answers(name, talks)
    alone = [answers(name, [talk])[0] for talk in talks]
    assert [(each.ids, each.text) for each in together] == [(each.ids, each.text) for each in alone]
    assert len({tuple(each.ids) for each in alone}) > 4  # they are not all the same drone


@pytest.mark.parametrize("name", ["next-video", "onevision"])
def test_order_in_the_batch_does_not_matter(name):
    order = random.Random(3).sample(range(8), 8)
    there = logits(name, EIGHT)
    for at, found in zip(order, logits(name, [EIGHT[at] for at in order]), strict=True):
        torch.testing.assert_close(found, there[at], rtol=0, atol=1e-5)


def test_rows_in_generation_do_not_matter():
    name = "onevision"
    few = vlmkit.generate(small.model(name), processor(name), [talk.messages for talk in EIGHT], max_new_tokens=8,
                          ignore_eos=True, rows=3)
    assert few == [vlmkit.generate(small.model(name), processor(name), talk.messages, max_new_tokens=8, ignore_eos=True)
                   for talk in EIGHT]


@pytest.mark.parametrize("seed", range(6))
def test_visuals_stand_where_they_were_put(seed):
    """Any mixture at any place: the embeddings at a visual's slots are what that visual alone is encoded to."""
    name, dice = "onevision" if seed % 2 else "next-video", random.Random(seed)
    talks = [_mixture(dice) for _ in range(3)]
    batch, model = processor(name)([talk.messages for talk in talks]), small.model(name)
    media = [thing for talk in talks for thing in talk.media]
    with torch.inference_mode():
        x = model.splice(batch.ids, batch.slots, model.encode(batch.visuals))
        alone = [model.encode([visual])[0] for visual in batch.visuals]
        words = model.decoder.embed(batch.ids)
    assert [visual.layout.kind == "video" for visual in batch.visuals] == [isinstance(m, list) for m in media]
    assert [(v.layout.height, v.layout.width) for v in batch.visuals] == [_size(thing) for thing in media]
    if alone:
        torch.testing.assert_close(x[batch.slots], torch.cat(alone), rtol=0, atol=1e-5)
    text = torch.ones(len(x), dtype=torch.bool).index_fill(0, batch.slots, False)
    assert torch.equal(x[text], words[text])
    assert sum(map(len, alone)) == len(batch.slots)
    assert batch.slots.diff().gt(0).all()
    marks = {"image": 3, "video": 4}
    placeholders = [marks[v.layout.kind] for v, seen in zip(batch.visuals, alone, strict=True) for _ in seen]
    assert batch.ids[batch.slots].tolist() == placeholders


def _mixture(dice):
    turns, media = [], []
    for _ in range(dice.choice([1, 3])):
        words = []
        for _ in range(dice.randint(1, 4)):
            kind = dice.choice(["word", "image", "video"])
            words.append(kind if kind == "word" else f"<{kind}>")
            seed = dice.randrange(100)
            if kind == "image":
                media.append(picture(dice.randint(10, 200), dice.randint(10, 200), seed))
            elif kind == "video":
                media.append(clip(dice.randint(1, 4), dice.randint(10, 90), dice.randint(10, 90), seed))
        turns.append(" ".join(words) + " ")
    turns = [turn if at % 2 == 0 else "Yes." for at, turn in enumerate(turns)]
    kept = [kind for turn in turns for kind in ("<image>", "<video>") for _ in range(turn.count(kind))]
    return Talk(tuple(turns), tuple(_take(media, turns, kept)))


def _take(media, turns, kept):
    """The media of the turns that still name them, in reading order."""
    stills, clips = ([m for m in media if isinstance(m, list) is moving] for moving in (False, True))
    words = [word for turn in turns for word in turn.split() if word in ("<image>", "<video>")]
    assert sorted(words) == sorted(kept)
    return [(stills if word == "<image>" else clips).pop(0) for word in words]


def _size(thing):
    first = thing[0] if isinstance(thing, list) else thing
    return first.height, first.width


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_backends_agree(attention):
    name = "bakllava"  # its window is 16 positions here
    model = vlmkit.build(small.preset(name), attention=attention).eval()
    model.load_state_dict(small.model(name).state_dict())
    batch = processor(name)([talk.messages for talk in eight(name)])
    with torch.inference_mode():
        found = model.logits(model(batch))
    torch.testing.assert_close(found, torch.cat(logits(name, eight(name))), rtol=0, atol=1e-5)


def test_cache_in_pieces_is_the_whole():
    """The prompt up to its last picture, then token by token, while other rows wait: the same hidden states."""
    model, talks = small.model("onevision"), EIGHT[:4]
    cache = model.decoder.cache(len(talks), 400)
    for row, talk in enumerate(talks):
        batch = processor("onevision")([talk.messages])
        lens, start = torch.zeros(len(talks), dtype=torch.int64), int(batch.slots.max()) + 1 if talk.media else 2
        with torch.inference_mode():
            lens[row] = start
            found = [model(batch._replace(ids=batch.ids[:start], lens=lens), cache)]
            lens[row] = 1
            for one in batch.ids[start:].split(1):
                found.append(model.decoder(model.decoder.embed(one), lens, cache))
            torch.testing.assert_close(torch.cat(found), model(batch), rtol=0, atol=1e-5)


def test_text_alone_needs_no_tower():
    name = "onevision"
    model, batch = small.model(name), processor(name)([Talk(("Hello",)).messages])
    assert not batch.visuals
    with torch.inference_mode():
        wanted = model.decoder(model.decoder.embed(batch.ids), batch.lens)
        assert torch.equal(model(batch), wanted)


def test_wrong_number_of_slots_is_told_with_both_numbers():
    name = "llava"
    batch = processor(name)([ONE.messages])
    with pytest.raises(ShapeError, match="15 slots but 16 visual tokens"):
        small.model(name)(batch._replace(slots=batch.slots[1:]))


def test_a_model_without_clips_says_so():
    still = vlmkit.build(small.preset("llava"))
    batch = processor("next-video")([EIGHT[3].messages])
    with pytest.raises(ShapeError, match="takes no video"):
        still(batch)
