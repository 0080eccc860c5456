"""Which frames: tables, and transformers' own sampler."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.errors import MediaError
from vlmkit.parts.samplers import fps, uniform


# llava-family.md 2.8
@pytest.mark.parametrize(("total", "floor", "linspace"), [
    (100, [0, 12, 25, 37, 50, 62, 75, 87], [0, 14, 28, 42, 56, 70, 84, 99]),
    (30, [0, 3, 7, 11, 15, 18, 22, 26], [0, 4, 8, 12, 16, 20, 24, 29]),
    (9, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 8]),
])
def test_eight_frames(total, floor, linspace):
    assert uniform.Config(frames=8).build().pick(total, 25) == floor
    assert uniform.Config(frames=8, rule="linspace").build().pick(total, 25) == linspace


def test_short_clip_repeats_frames():
    assert uniform.Config(frames=8).build().pick(3, 25) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert uniform.Config(frames=4, rule="linspace").build().pick(1, 25) == [0, 0, 0, 0]
    assert uniform.Config(frames=1, rule="linspace").build().pick(9, 25) == [0]


@given(st.integers(1, 5000), st.integers(1, 300), st.sampled_from(["floor", "linspace"]))
def test_indices_lie_in_the_clip_in_order(total, frames, rule):
    picked = uniform.Config(frames=frames, rule=rule).build().pick(total, 0)
    assert len(picked) == frames
    assert picked == sorted(picked)
    assert picked[0] == 0
    assert picked[-1] < total
    if rule == "linspace" and frames > 1:
        assert picked[-1] == total - 1


def test_by_rate():
    sampler = fps.Config(fps=1.0, most=8).build()
    assert sampler.pick(100, 25) == [0, 25, 50, 75]  # four seconds
    assert sampler.pick(10, 25) == [0]  # less than one second
    assert sampler.pick(100_000, 25) == [i * 12_500 for i in range(8)]  # the limit
    assert fps.Config(fps=60.0, most=8).build().pick(3, 25) == [0, 1, 2]  # more than there are


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rate_must_be_known(rate):
    with pytest.raises(MediaError, match="frame rate"):
        fps.Config().build().pick(100, rate)


@pytest.mark.parity
def test_as_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.video_utils import VideoMetadata

    theirs = transformers.LlavaOnevisionVideoProcessor()
    for total in (8, 9, 30, 100, 731, 9000):
        for frames in (1, 4, 8):
            about = VideoMetadata(total_num_frames=total, fps=29.97)
            assert uniform.Config(frames=frames).build().pick(total, 29.97) == list(
                theirs.sample_frames(about, num_frames=frames))
        if total >= 100:
            picked = fps.Config(fps=0.5, most=4096).build().pick(total, 29.97)
            assert picked == list(theirs.sample_frames(about, fps=0.5))
