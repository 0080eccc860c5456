"""Frames read group by group, in one thread or in three, are those that decoding everything gives."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vlmkit.errors import MediaDecodeError, MediaLimitError
from vlmkit.limits import Limits
from vlmkit.processing import clips
from vlmkit.processing.clips import Clip

MS = Fraction(1, 1000)


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def picture(index: int) -> np.ndarray:
    """A pan over noise; no two alike, and each is made of the one before."""
    noise = np.random.default_rng(5).integers(30, 220, (64, 256, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    return np.ascontiguousarray(noise[index % 60 : index % 60 + 48, 3 * index % 400 : 3 * index % 400 + 64])


@functools.cache
def encode(codec: str = "libx264", form: str = "mp4", times: tuple[int, ...] = (), flags: str = "",
           pix: str = "yuv420p", **options: str) -> bytes:
    """90 frames 40 ms apart, or at other `times`."""
    out = io.BytesIO()
    with av.open(out, "w", format=form, options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix
        unit = Fraction(1, 25) if form == "avi" else MS
        stream.codec_context.time_base = unit
        for at, shown in enumerate(times or range(0, 3600, 40)):
            frame = av.VideoFrame.from_ndarray(picture(at), format="rgb24")
            frame.pts, frame.time_base = int(shown * MS / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def everything(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def edited(data: bytes, frames: int) -> bytes:
    """The edit list begins so many frames later: what is before is decoded, but not shown."""
    at = data.index(b"elst") + 8
    length, start = struct.unpack_from(">Ii", data, at + 4)
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    whole = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    shift = Fraction(40 * frames, 1000)
    entry = struct.pack(">Ii", length - int(shift * whole), start + int(shift * scale))
    return data[: at + 4] + entry + data[at + 12 :]


def silent(data: bytes) -> bytes:
    """The H.264 header's appendix is gone, and with it the word on how long frames wait for their turn."""
    at = data.index(b"\xff\xe1") + 2  # four bytes of length, one header
    length = int.from_bytes(data[at : at + 2], "big")
    body = data[at + 2 : at + 2 + length].replace(b"\0\0\3", b"\0\0")
    bits, place = "".join(f"{byte:08b}" for byte in body), 32  # NAL type, profile, constraints, level

    def code() -> int:
        nonlocal place
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        return int(bits[place - zeros - 1 : place], 2) - 1

    assert [code() for _ in range(4)] == [0, 1, 0, 0]  # number, 4:2:0, eight bits twice
    place += 2
    code()
    assert code() == 0  # order by numbers written out
    code(), code()
    place += 1
    code(), code()
    place += 2  # frames, inference
    if bits[place] == "1":  # cropping
        place += 1
        _ = [code() for _ in range(4)]
    else:
        place += 1
    assert bits[place] == "1"
    short = bits[:place] + "01"
    cut = bytes(int(short[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(short), 8))
    assert b"\0\0" not in cut
    return data[: at + 2] + cut.ljust(length, b"\0") + data[at + 2 + length :]


def av1() -> bytes:
    """As root, SVT-AV1 gives the whole process real-time priority and keeps it; then nothing else on the core runs."""
    made = encode("libsvtav1", "matroska", g="12", preset="12")
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
    return made


X264 = {
    "all key frames": {"g": "1"},
    "no B-frames": {"g": "7", "bf": "0"},
    "B-frames": {"g": "12", "bf": "3", "x264-params": "b-pyramid=none:b-adapt=0"},
    "B-frames others refer to": {"g": "30", "x264-params": "bframes=5:b-pyramid=normal:b-adapt=0"},
    "key frames where scenes change": {"g": "250", "x264-params": "scenecut=80:keyint=25"},
    "one key frame": {"g": "250"},
    "slices": {"g": "12", "x264-params": "slices=3"},
    "interlaced": {"g": "12", "x264-params": "interlaced=1:tff=1"},
    "ten references": {"g": "20", "x264-params": "ref=10:bframes=6:b-adapt=0"},
}
GOOD = {
    **{name: functools.partial(encode, **options) for name, options in X264.items()},
    **{f"{name}, in Matroska": functools.partial(encode, form="matroska", **X264[name])
       for name in ("B-frames", "B-frames others refer to", "all key frames")},
    "fragments, no count of frames": functools.partial(encode, flags="frag_keyframe+empty_moov", g="12"),
    "uneven times": functools.partial(encode, times=tuple(40 * at + 3 * at * at for at in range(90)), g="12"),
    "gaps": functools.partial(encode, times=tuple(40 * at + 5000 * (at // 20) for at in range(90)), g="12"),
    "edit list": lambda: edited(encode(g="12"), 17),
    "nothing said of reordering": lambda: silent(
        encode(form="matroska", g="30", **{"x264-params": "bframes=5:b-adapt=0"})),
    "HEVC": functools.partial(encode, "libx265", **{"x265-params": "keyint=12:open-gop=0:log-level=0"}),
    "HEVC, open groups": functools.partial(encode, "libx265", **{"x265-params": "keyint=12:open-gop=1:log-level=0"}),
    "MPEG-4": functools.partial(encode, "mpeg4", g="12", bf="2"),
    "VP9": functools.partial(encode, "libvpx-vp9", "webm", g="12", deadline="realtime", **{"auto-alt-ref": "1"}),
    "AV1": av1,
    "Motion JPEG": functools.partial(encode, "mjpeg", "matroska", pix="yuvj420p"),
}  # fmt: skip
HARD = {  # only what nothing but the start of the file can tell may be read from there
    "open groups": functools.partial(encode, **{"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}),
    "open groups, others refer to B-frames": functools.partial(
        encode, **{"x264-params": "open-gop=1:keyint=16:bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0"}),
    "no key frames but refreshed columns": functools.partial(encode, g="20", **{"x264-params": "intra-refresh=1"}),
    "AVI, B-frames": functools.partial(encode, form="avi", g="12"),
}  # fmt: skip
WANTED = ([0], [89], [3, 9, 10, 11, 12, 13, 25, 60], list(range(0, 90, 11)), list(range(90)))


@pytest.mark.parametrize("name", GOOD | HARD)
def test_frames_are_those_of_decoding_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (GOOD | HARD)[name]()
    frames = everything(data)
    if name in GOOD:
        monkeypatch.setattr(Clip, "_from_the_start", lambda self, wanted, budget: iter(()))  # seeking is enough
    clip = Clip(data)
    assert clip.frames == len(frames) == (73 if name == "edit list" else 90)
    for wanted in WANTED:
        wanted = [at for at in wanted if at < len(frames)]
        for at, found in zip(wanted, clip.read(wanted), strict=True):
            assert np.array_equal(np.asarray(found), frames[at]), at


def test_cost_follows_the_wanted_frames(threads: int) -> None:
    short, long = (encode(times=tuple(range(0, 40 * n, 40)), g="10", bf="0", sc_threshold="0") for n in (40, 400))
    for data in (short, long):
        clip = Clip(data)
        with Limits(video_max_decoded_frames=24):  # 5 + 9 + 10
            assert len(clip.read([14, 28, 39])) == 3
    with Limits(video_max_decoded_frames=20), pytest.raises(MediaLimitError, match=r"video\.max_decoded_frames"):
        clip.read([14, 28, 39])  # however many threads share it


def test_few_pictures_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(g="10")
    for bytes_ahead in (1, 4 * 48 * 64, 9 * 48 * 64):
        monkeypatch.setattr(clips, "AHEAD", bytes_ahead)
        found = Clip(data).read([12, 25, 33, 48, 71])
        for picture, at in zip(found, (12, 25, 33, 48, 71), strict=True):
            assert np.array_equal(np.asarray(picture), everything(data)[at])


def test_nothing_stays_open() -> None:
    data, path = encode(g="10"), os.path.join("/proc", "self", "fd")
    damaged = bytearray(data)
    for at in range(len(data) * 6 // 10, len(data) * 8 // 10, 7):
        damaged[at] ^= 0xA5
    gc.collect()
    before, running = len(os.listdir(path)), threading.active_count()
    gc.disable()  # what is left must be closed at once, not at some time
    try:
        frames = Clip(data).decode([12, 25, 33, 48, 71])
        assert next(frames)[0] == 12
        frames.close()
        with pytest.raises(MediaDecodeError, match=r"damaged: \d of 8 frames"):
            Clip(bytes(damaged)).read(list(range(5, 85, 10)))
        assert (len(os.listdir(path)), threading.active_count()) == (before, running)
    finally:
        gc.enable()
