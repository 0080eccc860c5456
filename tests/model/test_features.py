"""Features kept by content: the second question about a picture runs no tower, and nothing outlives the weights."""

import copy

import pytest
import small
import torch
from small import Talk, clip, picture

from vlmkit.model.features import FeatureCache

A, B, CLIP = picture(48, 100, 1), picture(70, 33, 2), clip(3)
FIRST = Talk(("<image>\nWhat is in it?",), (A,))
SECOND = Talk(("Hello.", "Hi.", "<image>\n<video>\nWhere is it?"), (A, CLIP))
PAIR = Talk(("<image>\n<image>\nWhat is new?",), (A, B))


class Watched:
    """A model of our own, and how many tiles its towers were shown."""

    def __init__(self, name="onevision"):
        self.model, self.process, self.tiles = copy.deepcopy(small.model(name)), small.processor(name), 0
        towers = {id(t): t for kind in ("image", "video") if getattr(self.model, kind)
                  for t in [self.model.part(kind, "tower")[1]]}
        for tower in towers.values():
            tower.register_forward_hook(self.count)

    def count(self, _, given, __):
        self.tiles += len(given[0])

    def see(self, talk, cache=None):
        batch = self.process([talk.messages])
        before = self.tiles
        with torch.inference_mode():
            return self.model.encode(batch.visuals, cache), self.tiles - before


def same(found, wanted):
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("name", ["onevision", "next-video", "video-llava"])
def test_second_question_runs_no_tower(name):
    us, cache = Watched(name), FeatureCache()
    wanted = us.see(SECOND)[0]
    first, tiles = us.see(SECOND, cache)
    assert tiles > 0
    again, tiles = us.see(SECOND, cache)
    assert tiles == 0
    assert same(first, wanted)
    assert same(again, wanted)
    assert (cache.hits, cache.misses) == (2, 2)


def test_only_what_is_new_is_looked_at():
    us, cache = Watched(), FeatureCache()
    alone = us.see(FIRST, cache)  # alone it is tiled, beside the clip, too, but beside another picture it is not
    found, tiles = us.see(SECOND, cache)
    assert tiles == 3  # frames
    torch.testing.assert_close(found, us.see(SECOND)[0], rtol=0, atol=1e-5)
    assert torch.equal(found[0], alone[0][0])
    pair, tiles = us.see(PAIR, cache)
    assert tiles == 2
    assert len(pair[0]) < len(alone[0][0])


def test_twice_in_one_batch_is_looked_at_once():
    us = Watched()
    found, tiles = us.see(Talk(("<image>\n<image>\nSame?",), (B, B)), FeatureCache())
    assert tiles == 1
    assert same(found[:1], found[1:])


def test_same_pixels_of_other_sizes_are_others():
    """A square of one colour is the same tile at any size, but its layout says what was padding."""
    us, cache = Watched("next"), FeatureCache()
    us.see(FIRST, cache)
    plain = [picture(1, 1, 3).resize(size) for size in ((56, 112), (28, 112))]
    for each in plain:
        talk = Talk(("<image>\nWhat?",), (each,))
        torch.testing.assert_close(us.see(talk, cache)[0], us.see(talk)[0], rtol=0, atol=1e-5)


def test_observation_point_sees_what_comes_from_the_cache():
    us, cache, seen = Watched(), FeatureCache(), []
    us.model.image.tokens.register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    first, again = us.see(FIRST, cache)[0], us.see(FIRST, cache)[0]
    assert same(seen, first + again)


def _step(us, kind, **how):
    weights = [*us.model.projector.parameters()]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    kind(weights, lr=1e-3, **how).step()


def _load(us):
    us.model.load_state_dict(small.model("onevision", 7).state_dict())


def _assign(us):
    us.model.load_state_dict({name: t.clone() for name, t in us.model.state_dict().items()}, assign=True)


def _one(us):
    with torch.no_grad():
        us.model.tower.vit.blocks[1].mlp.fc1.weight[3, 5] += 1


def _round(us):
    us.model.bfloat16().float()


def _data(us):
    for weight in us.model.tower.parameters():
        weight.data.mul_(1.01)


CHANGES = {
    "sgd": lambda us: _step(us, torch.optim.SGD), "fused": lambda us: _step(us, torch.optim.AdamW, fused=True),
    "load": _load, "assign": _assign, "one number": _one, "rounded": _round, "data": _data,
    "newline": lambda us: us.model.separators["newline"].data.zero_(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_see_for_themselves(change):
    us, cache = Watched(), FeatureCache()
    before = us.see(FIRST, cache)[0]
    CHANGES[change](us)
    found, tiles = us.see(FIRST, cache)
    assert tiles > 0
    assert same(found, us.see(FIRST)[0])
    if change != "assign":
        assert not same(found, before)


def test_an_optimizer_that_leaves_no_version_is_seen():
    """A step that moves few numbers, by a kernel that does not say so."""
    us, cache = Watched(), FeatureCache()
    us.see(FIRST, cache)
    weight = us.model.tower.vit.blocks[0].attn.qkv.weight
    weight.grad = torch.zeros_like(weight)
    weight.grad[7, 3] = 1
    torch.optim.AdamW([weight], lr=1e-3, weight_decay=0, fused=True).step()
    assert us.see(FIRST, cache)[1] > 0


def test_another_model_is_not_given_the_first_ones():
    us, other, cache = Watched(), Watched(), FeatureCache()
    us.see(FIRST, cache)
    assert other.see(FIRST, cache)[1] > 0
    assert us.see(FIRST, cache)[1] > 0


def test_training_and_gradients_leave_it_alone():
    us, cache = Watched(), FeatureCache()
    us.see(FIRST, cache)
    visuals = us.process([FIRST.messages]).visuals
    for found in (us.model.encode(visuals, cache), us.model.train().encode(visuals, cache)):
        assert found[0].requires_grad
    with torch.no_grad():
        us.model.encode(visuals, cache)
    assert us.tiles == 4 * visuals[0].layout.tiles
    assert (cache.hits, cache.misses) == (0, 1)


def test_bytes_are_bounded_and_the_oldest_leaves():
    us = Watched()
    talks = [Talk(("<image>\nWhat?",), (picture(50, 50, seed),)) for seed in range(3)]
    size = us.see(talks[0])[0][0].nbytes
    cache = FeatureCache(most=2 * size)
    for talk in (talks[0], talks[1], talks[0], talks[2]):  # 1 was not asked for longest
        us.see(talk, cache)
        assert cache.bytes <= cache.most
    assert [us.see(talks[at], cache)[1] > 0 for at in (0, 2, 1)] == [False, False, True]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache._kept.values()}
    assert sum(held.values()) == cache.bytes
    tiny = FeatureCache(most=size - 1)
    us.see(talks[0], tiny)
    assert tiny.bytes == 0
    assert us.see(talks[0], tiny)[1] > 0


def test_parts_of_a_batch_do_not_keep_the_whole():
    us, cache = Watched("llava"), FeatureCache()
    us.see(PAIR, cache)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in cache._kept.values())


def test_answers_are_the_same():
    us, cache = Watched(), FeatureCache()
    batch = us.process([SECOND.messages])

    def logits(cache):
        with torch.inference_mode():
            x = us.model.splice(batch.ids, batch.slots, us.model.encode(batch.visuals, cache))
            return us.model.logits(us.model.decoder(x, batch.lens))

    wanted = logits(None)
    assert torch.equal(logits(cache), wanted)
    assert torch.equal(logits(cache), wanted)
    assert us.tiles == 2 * sum(v.layout.tiles for v in batch.visuals)
