"""Looking inside a model while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import vlmkit
from vlmkit.types import Batch, Layout, Visual
from vlmkit.view.watch import points, watch


@pytest.fixture(scope="module")
def preset() -> object:
    return vlmkit.compose("tiny")


def batch() -> Batch:
    """Five words around one square picture."""
    visual = Visual(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), Layout("image", 64, 64))
    model = vlmkit.build(vlmkit.compose("tiny"))
    tokens = len(model.encode([visual])[0])
    ids = torch.ones(tokens + 5, dtype=torch.long)
    return Batch(ids, torch.tensor([len(ids)]), torch.arange(2, 2 + tokens), [visual])


def test_named_points_are_collected_and_let_go() -> None:
    model, given = vlmkit.build(vlmkit.compose("tiny")), batch()
    with watch(model, "image.features", "image.tokens") as seen:
        model(given)
    assert [len(passed) for passed in seen.values()] == [1, 1]
    assert seen["image.tokens"][0].shape == (len(given.slots), model.decoder.width)
    assert not seen["image.tokens"][0].requires_grad
    model(given)
    assert len(seen["image.tokens"]) == 1


def test_a_wrong_name_lists_the_right_ones() -> None:
    model = vlmkit.build(vlmkit.compose("tiny"))
    with pytest.raises(vlmkit.VlmkitError, match="no point named") as caught, watch(model, "image.nothing"):
        pass
    assert "image.features" in caught.value.hint
    assert "image.features" in points(model)


def test_attention_of_an_answer(tmp_path: Path) -> None:
    """The tokens may be nonsense without training, the weights are still a distribution over what came before."""
    from vlmkit.model.assemble import assemble
    from vlmkit.processing.processor import Processor
    from vlmkit.processing.tokenizer import Tokenizer
    from vlmkit.view import attention
    from vlmkit.view.trace import trace

    preset = vlmkit.compose("tiny")
    model = vlmkit.build(preset, attention="eager").eval()
    skeleton = assemble(preset)
    folder = vlmkit.presets()["tiny"].parent
    processor = Processor(preset, skeleton, Tokenizer.from_file(folder / "tokenizer.json"))
    picture = Image.new("RGB", (200, 100), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    looks, given = attention.looks(model, processor, [{"role": "user", "content": content}], max_new_tokens=3)
    assert 1 <= len(looks) <= 3
    for look in looks:
        assert look.weights.shape == (len(given.slots),)
        assert 0 < float(look.weights.sum()) < 1
    origin = trace(skeleton, given.visuals[0].layout)
    assert origin is not None
    assert attention.draw(looks, given.visuals[0], origin).width == 1500


def test_words_are_those_of_the_answer() -> None:
    """What ends an answer is a token, and no word."""
    from vlmkit.view import attention

    model, processor = vlmkit.load("tiny", attention="eager")
    file = Path(__file__).parents[2] / "examples" / "media" / "shapes.png"
    content = [{"type": "image", "image": str(file)}, {"type": "text", "text": "What shape is the red object?"}]
    talk = [{"role": "user", "content": content}]
    answer = vlmkit.generate(model, processor, talk, details=True)
    assert (answer.finish, processor.tokenizer.decode(answer.ids[-1:])) == ("stop", "")
    looks, _ = attention.looks(model, processor, talk)
    assert "".join(look.word for look in looks) == answer.text
