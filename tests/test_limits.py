"""Limits: what is said in code stands over the environment, and leaves the rest as it is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from vlmkit.errors import OverrideError
from vlmkit.limits import Limits, current, resolve, set_word


def test_code_changes_only_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_LIMIT_VIDEO__MAX_STREAMS", "3")
    monkeypatch.setenv("VLMKIT_LIMIT_IMAGE__MAX_ASPECT", "5")
    with Limits(image_max_pixels=100), Limits(image_max_aspect=Limits.image_max_aspect):
        now = current()
        assert (now.image_max_pixels, now.video_max_streams) == (100, 3)
        assert now.image_max_aspect == 200  # said in code, though it is the default
    assert (current().image_max_pixels, current().image_max_aspect) == (64_000_000, 5)


def test_limits_travel_between_processes() -> None:
    with pickle.loads(pickle.dumps(Limits(media_max_images=2))) as inside:
        assert (inside.media_max_images, current().media_max_images) == (2, 2)


def most_images() -> int:
    return current().media_max_images


def test_who_begins_inside_obeys() -> None:
    forking = multiprocessing.get_context("fork")
    with Limits(media_max_images=2), ThreadPoolExecutor(1) as thread, forking.Pool(1) as fork:
        assert fork.apply(most_images) == 2
        assert thread.submit(copy_context().run, most_images).result() == 2
        assert thread.submit(most_images).result() == 16  # a thread of its own, as the page says


def test_threads_share_one_object() -> None:
    """Each leaves what it entered, in whatever order they come and go."""
    strict = Limits(media_max_images=2)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        for thread in (one, two):
            thread.submit(strict.__enter__).result()
        for thread in (one, two):
            assert thread.submit(most_images).result() == 2
            thread.submit(strict.__exit__).result()
            assert thread.submit(most_images).result() == 16


def test_blocks_lie_in_each_other() -> None:
    strict = Limits(media_max_images=2)
    with strict, Limits(media_max_images=3), strict:
        assert most_images() == 2
    assert most_images() == 16


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "4", 513])
def test_what_is_no_limit(value: object) -> None:
    with pytest.raises(OverrideError, match="from 0 to 512") as caught:
        Limits(video_max_sampled_frames=value)  # type: ignore[arg-type]
    assert caught.value.where == "Limits(video_max_sampled_frames=...)"


def test_a_limit_that_has_an_end_has_it_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with Limits(video_max_sampled_frames=512):
        assert current().video_max_sampled_frames == 512
    with pytest.raises(OverrideError, match=r"from 0 to 512, got '1000'"):
        set_word("video.max_sampled_frames=1000")
    monkeypatch.setenv("VLMKIT_LIMIT_VIDEO__MAX_SAMPLED_FRAMES", "1e3")
    with pytest.raises(OverrideError, match="from 0 to 512") as caught:
        resolve(os.environ)
    assert caught.value.where == "VLMKIT_LIMIT_VIDEO__MAX_SAMPLED_FRAMES"
