"""Clips with sound, frames given by hand, limits, and many small damages that end in our errors."""

from __future__ import annotations

import io
import random
import time
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vlmkit.errors import MediaDecodeError, MediaError, MediaLimitError, VlmkitError
from vlmkit.limits import Limits
from vlmkit.parts.samplers.uniform import Config as Uniform
from vlmkit.processing.media import open_picture, probe, read_clip


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 16 + 5 * index, np.uint8)


def encode(form: str, codec: str, pix: str = "yuv420p", frames: int = 40) -> bytes:
    """A clip whose grey level tells the index of a frame."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10", "crf": "8"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix
        for at in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(at), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def seen(frame: Image.Image) -> int:
    """The index a frame shows."""
    return round((float(np.asarray(frame)[frame.height // 2 :].mean()) - 16) / 5)


MP4 = encode("mp4", "libx264")


def test_a_clip_with_sound() -> None:
    out = io.BytesIO()
    with av.open(io.BytesIO(MP4)) as source, av.open(out, "w", format="matroska") as container:
        sound = container.add_stream("aac", rate=16000)
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert [seen(frame) for frame in probe(out.getvalue()).read([3, 33])] == [3, 33]


def test_frames_given_by_hand() -> None:
    array = np.stack([picture(at) for at in range(12)])
    sampler = Uniform(frames=4).build()
    frames, times = read_clip(array, sampler)
    assert [seen(frame) for frame in frames] == [0, 3, 6, 9]
    assert times == [0, 3, 6, 9]
    frames, _ = read_clip([Image.fromarray(array[at]) for at in range(3)], sampler)  # all are meant
    assert [seen(frame) for frame in frames] == [0, 1, 2]
    with pytest.raises(MediaDecodeError, match="different sizes: 48 x 64, but number 1 is 20 x 24"):
        read_clip([picture(0), picture(1, 20, 24)], sampler)
    for bad in (array[0], [], 7, array.astype(np.float32)):
        with pytest.raises(MediaError):
            read_clip(bad, sampler)


def test_limits() -> None:
    with Limits(video_max_sampled_frames=4), pytest.raises(MediaLimitError, match=r"video\.max_sampled_frames"):
        read_clip(MP4, Uniform(frames=8).build())
    with Limits(video_max_frame_pixels=1000), pytest.raises(MediaLimitError, match=r"video\.max_frame_pixels"):
        probe(MP4)
    with Limits(video_max_bytes=1000), pytest.raises(MediaLimitError, match=r"video\.max_bytes"):
        probe(MP4)


def saved(form: str, **options: object) -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(np.random.default_rng(at).integers(0, 256, (30, 40, 3), np.uint8)) for at in range(3)]
    frames[0].save(out, form, **({"save_all": True, "append_images": frames[1:]} if form == "GIF" else options))
    return out.getvalue()


def mutant(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out or doubled, often near the beginning."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(changed) if draw.random() < 0.5 else min(200, len(changed)))
        match draw.randrange(4):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                changed[at : at + 4] = draw.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
            case 2:
                del changed[at : at + draw.randrange(1, 40)]
            case _:
                changed[at:at] = changed[at : at + draw.randrange(1, 40)]
        changed = changed or bytearray(b"x")
    return bytes(changed)


SEEDS = {
    "mp4": MP4, "mkv": encode("matroska", "libx264"), "avi": encode("avi", "mpeg4"),
    "mjpeg": encode("avi", "mjpeg", "yuvj420p", 8), "PNG": saved("PNG"), "JPEG": saved("JPEG"), "GIF": saved("GIF"),
    "progressive": saved("JPEG", progressive=True), "WEBP": saved("WEBP"), "BMP": saved("BMP"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEDS)
def test_damage_ends_in_pictures_or_in_our_own_errors(name: str) -> None:
    draw = random.Random(name)
    for _ in range(60):
        data = mutant(SEEDS[name], draw)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if name.isupper() or name == "progressive":
                    open_picture(data)
                else:
                    clip = probe(data)
                    clip.read([0, clip.frames // 2, clip.frames - 1])
            except VlmkitError:
                pass
        assert time.perf_counter() - started < 3
