"""From preset to model: names, seeds, devices, what is shared and what is not."""

import pytest
import small
import torch
from small import Talk, clip, picture

import vlmkit
from vlmkit.errors import PresetError, VlmkitError
from vlmkit.model.assemble import assemble

BOTH = Talk(("<image>\n<video>\nWhat is in it?", "A cat.", "Sure?"), (picture(48, 100), clip(3)))


def sections(model):
    return {name.split(".")[0] for name, _ in model.named_parameters()}


def test_sections_of_the_preset_are_attributes_and_prefixes():
    onevision = assemble(small.preset("onevision"))
    assert sections(onevision) == {"tower", "projector", "decoder", "separators"}
    assert onevision.separators["newline"].shape == (32,)
    assert sections(assemble(small.preset("llava"))) == {"tower", "projector", "decoder"}
    own = assemble(small.preset("video-llava"))
    assert sections(own) == {"tower", "projector", "decoder", "video"}
    assert all(name.startswith("video.tower.vit.") for name, _ in own.named_parameters() if name.startswith("video"))
    assert own.video.tower is not own.tower
    assert own.video.projector is None
    assert onevision.video.tower is None


def test_separators_are_those_that_packers_ask_for():
    base, tower, *_ = small.PRESETS["onevision"]
    slow = small.shrink(base, tower, "video.packer=slowfast")
    assert set(assemble(slow).separators) == {"newline", "faster"}
    none = small.shrink(base, tower, "image.packer=flat", "video.packer.newline=none")
    assert not assemble(none).separators


def test_a_tied_head_is_no_second_tensor():
    assert "decoder.head.weight" not in assemble(small.preset("onevision-tied")).state_dict()
    assert "decoder.head.weight" in assemble(small.preset("onevision")).state_dict()


def test_assembled_on_meta_built_on_the_host():
    skeleton, model = assemble(small.preset("video-llava")), vlmkit.build(small.preset("video-llava"))
    assert all(t.is_meta for t in skeleton.state_dict().values())
    assert all(t.device.type == "cpu" and t.isfinite().all() for t in model.state_dict().values())
    assert ({name: t.shape for name, t in skeleton.state_dict().items()}
            == {name: t.shape for name, t in model.state_dict().items()})


def test_seed_makes_the_weights():
    preset = small.preset("onevision")
    one, same, other = (vlmkit.build(preset, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if one[name].std() > 0]
    assert len(drawn) > 20
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_what_is_around_stays_as_it_was():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    vlmkit.build(small.preset("llava"), dtype=torch.bfloat16)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.get_default_dtype() == torch.float32
    base, tower, *_ = small.PRESETS["llava"]
    with pytest.raises(PresetError):
        vlmkit.build(small.shrink(base, tower, "tower.layer=9"), dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
    assert torch.empty(1).device.type == "cpu"


def test_half_precision_runs_and_is_near():
    """bfloat16 has 8 bits; the answers of a random model still resemble each other."""
    preset, process = small.preset("onevision"), small.processor("onevision")
    exact = small.model("onevision")
    model = vlmkit.build(preset, dtype=torch.bfloat16).eval()
    model.load_state_dict(exact.state_dict())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    batch = process([BOTH.messages])
    with torch.inference_mode():
        found, wanted = model.logits(model(batch)), exact.logits(exact(batch))
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, wanted).mean() > 0.99


def test_loss_reaches_every_weight():
    """Picture, clip and words in one conversation: nothing that is built is out of the gradient's reach."""
    for name in ("onevision", "next-video", "video-llava", "onevision-tied"):
        model = vlmkit.build(small.preset(name))
        batch = small.processor(name)([[*BOTH.messages, {"role": "assistant", "content": "Yes."}]], reply=False,
                                      labels=True)
        vlmkit.loss(model, batch).backward()
        blind = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert not blind, blind


@pytest.mark.parametrize("name", ["eager", "sdpa", "auto"])
def test_attention_is_chosen_by_name(name):
    assert vlmkit.build(small.preset("llava"), attention=name)


def test_unknown_attention_is_told_with_those_there_are():
    with pytest.raises(VlmkitError, match="eager"):
        assemble(small.preset("llava"), "edger")


def test_each_block_has_an_attention_of_its_own():
    blocks = vlmkit.build(small.preset("llava"), attention="eager").decoder.blocks
    assert blocks[0].attn.attend is not blocks[1].attn.attend
