"""Limits: what is said in code stands over the environment, and leaves the rest as it is."""

from __future__ import annotations

import pickle

import pytest

from vlmkit.limits import Limits, current


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
