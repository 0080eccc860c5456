"""Pictures side by side in threads: the same batch in the same order, the same errors, the same limits."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlmkit
from vlmkit.errors import MediaDecodeError, MediaError, MediaLimitError
from vlmkit.limits import Limits, current
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.threads import Ahead
from vlmkit.processing.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import small


@pytest.fixture(scope="module")
def processor() -> Processor:
    preset = vlmkit.compose("llava-next-vicuna-7b", f"decoder.vocab={small.VOCAB}", "decoder.context=65536")
    return Processor(preset, assemble(preset), Tokenizer(small.tokenizer(True)))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def file(height: int, width: int) -> bytes:
    draw = np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(draw).save(out, "JPEG", quality=95)
    return out.getvalue()


def talk(*pictures: object) -> list[dict[str, object]]:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": "What is this?"}]}]


def test_same_batch_in_the_same_order(processor, threads):
    sizes = [(30 + 7 * i, 90 - 5 * i) for i in range(12)]
    talks = [talk(*(file(*size) for size in sizes[:5])), talk(), talk(file(700, 900)),
             talk(*(file(*size) for size in sizes[5:]))]
    threads(1)
    alone = processor(talks)
    threads(4)
    for together in (processor(talks), processor(talks)):
        assert torch.equal(alone.ids, together.ids)
        assert torch.equal(alone.slots, together.slots)
        assert [v.layout for v in alone.visuals] == [v.layout for v in together.visuals]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone.visuals, together.visuals, strict=True))


def test_one_picture_shown_twice(processor, threads):
    """An image that somebody opened and nobody has read yet has one file: two threads must not both read it."""
    data = file(500, 700)
    threads(4)
    image = Image.open(io.BytesIO(data))
    seen = processor(talk(*[image] * 6))
    expected = processor(talk(data, data))
    assert all(torch.equal(visual.pixels, expected.visuals[0].pixels) for visual in seen.visuals)


@pytest.mark.parametrize("count", [1, 4])
def test_first_broken_picture_is_told(processor, threads, count):
    good, cut = file(60, 80), file(300, 400)
    threads(count)
    with pytest.raises(MediaDecodeError, match="image 2"):
        processor(talk(good, cut[: len(cut) // 2], good, cut[: len(cut) // 3]))
    with pytest.raises(MediaDecodeError, match="image 1"):
        processor([talk(good), talk(cut[: len(cut) // 2]), talk(good)])
    assert len(processor([talk(good), talk(good)]).visuals) == 2  # the next call is as ever
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vlmkit")]


@pytest.mark.parametrize("count", [1, 4])
def test_limits_hold(processor, threads, count):
    threads(count)
    with Limits(image_max_pixels=1000), pytest.raises(MediaLimitError):
        processor([talk(file(20, 20)), talk(file(40, 40))])
    with Limits(image_max_pixels=1000), Ahead() as ahead:
        assert ahead(lambda: current().image_max_pixels)() == 1000


def test_what_has_not_begun_never_begins(threads):
    threads(2)
    done: list[int] = []

    def fail() -> None:
        raise MediaError("no")

    def slow(i: int) -> None:
        time.sleep(0.1)
        done.append(i)

    def run() -> None:
        with Ahead() as ahead:
            first = ahead(fail)
            for i in range(100):
                ahead(slow, i)
            first()

    with pytest.raises(MediaError):
        run()
    assert len(done) < 100
