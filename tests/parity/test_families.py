"""Small models with transformers' weights give transformers' ids, pixels, logits and answers, in all families."""

from functools import cache

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

import agreement  # noqa: E402
import small  # noqa: E402
import theirs  # noqa: E402
from small import Talk, clip, picture  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.model.assemble import assemble  # noqa: E402

A, B, C = picture(48, 64, 1), picture(70, 33, 2), picture(33, 120, 3)
WIDE, LARGE = picture(60, 200, 4), picture(380, 270, 5)
ASK = "<image>\nWhat is in it?"
TALKS = {
    "one": Talk((ASK,), (A,)),
    "tall": Talk((ASK,), (B,)),
    "two": Talk(("<image>\n<image>\nWhat is new?",), (A, C)),
    "apart": Talk(("See <image>\nand then <image>\n: same?",), (B, WIDE)),
    "turns": Talk((ASK, "A cat.", "And in <image>\n?"), (A, B)),
    "text": Talk(("What is a cat?",)),
    "talk": Talk(("Hello", "Hi.", "What is a cat?")),
    "large": Talk((ASK,), (LARGE,)),
    "clip": Talk(("<video>\nWhat is in it?",), (clip(8),)),
    "short": Talk(("<video>\nWhat is in it?",), (clip(4, 50, 90),)),
    "both": Talk(("<image>\n<video>\nWhat is in it?",), (A, clip(8))),
    "later": Talk(("<video>\nWhat is in it?", "A cat.", "Is it in <image>\n?"), (clip(8, 81, 50, 3), WIDE)),
}
PICTURES = ["one", "two", "apart", "turns", "text"]
SEVERAL = ["one two", "text tall turns"]
CASES = [
    *[("llava", t) for t in [*PICTURES, *SEVERAL]],
    *[("llava-crop", t) for t in ["two", "text tall turns"]],
    *[("vip-llava", t) for t in ["one", "turns", "one two"]],
    *[("bakllava", t) for t in ["two", "text tall turns"]],
    *[("interleave", t) for t in ["one", "two", "text one two"]],
    *[("next", t) for t in [*PICTURES, *SEVERAL]],
    *[("next-mistral", t) for t in ["turns", "tall two text"]],
    *[("next-video", t) for t in ["apart", "clip", "short", "both", "later", "one text both later"]],
    *[("onevision", t) for t in ["one", "tall", "large", "two", "turns", "clip", "short", "both"]],
    *[("onevision", t) for t in ["one two", "text large turns clip"]],
    *[("onevision-tied", t) for t in ["large", "text one clip"]],
    *[("video-llava", t) for t in ["turns", "clip", "both", "later", "text one both later"]],
]


@cache
def ours(name):
    """Our model with their weights; nothing of ours is left as it was drawn."""
    model = vlmkit.build(small.preset(name)).eval()
    found = theirs.weights(name)
    if small.preset(name).decoder.tied:
        assert torch.equal(found.pop("decoder.head.weight"), found["decoder.embed.weight"])
    missing, left = model.load_state_dict(found, strict=False)
    assert not missing
    depth = len(model.tower.vit.blocks)
    assert all(".vit.norm." in key or f"vit.blocks.{depth}." in key for key in left), left
    return model


@pytest.mark.parametrize(("name", "talks"), CASES)
def test_family(name, talks):
    talks = [TALKS[talk] for talk in talks.split()]
    messages = [talk.messages for talk in talks]
    agreement.as_transformers(name, ours(name), small.processor(name), messages, theirs.read(name, talks))


@pytest.mark.parametrize(("name", "talk"), [("next-video", "later"), ("onevision", "turns")])
def test_loss_and_gradients(name, talk):
    """What is learned from a conversation, and where it pulls each weight."""
    messages = [*TALKS[talk].messages, {"role": "assistant", "content": "Yes, a cat."}]
    batch = small.processor(name)([messages], reply=False, labels=True)
    model = theirs.model(name)
    read = theirs.read(name, [TALKS[talk]])
    read |= {"input_ids": batch.ids[None], "attention_mask": torch.ones_like(batch.ids)[None]}
    found, wanted = vlmkit.loss(ours(name), batch), model(**read, labels=batch.labels[None]).loss
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    pairs = [("decoder.embed.weight", "model.language_model.embed_tokens.weight"),
             ("decoder.blocks.0.attn.q.weight", "model.language_model.layers.0.self_attn.q_proj.weight"),
             ("projector.layers.0.weight", "model.multi_modal_projector.linear_1.weight"),
             ("separators.newline", "model.image_newline"),
             ("tower.vit.pos_embed", "model.vision_tower.embeddings.position_embedding.weight")]
    own = torch.autograd.grad(found, [ours(name).get_parameter(here) for here, _ in pairs])
    their = torch.autograd.grad(wanted, [model.get_parameter(there) for _, there in pairs])
    for one, other in zip(own, their, strict=True):
        assert other.any()
        torch.testing.assert_close(one.view_as(other), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "eps"), [("next-video", 1e-5), ("vip-llava", 1e-5), ("onevision", 1e-6)])
def test_norms_of_the_tower(name, eps):
    """Random weights cannot tell 1e-5 from 1e-6; llava-family.md 1.2 does."""
    tower = assemble(small.preset(name)).tower
    assert {norm.eps for norm in tower.modules() if isinstance(norm, torch.nn.LayerNorm)} == {eps}
    assert name != "vip-llava" or small.preset(name).projector.norm == 1e-5
