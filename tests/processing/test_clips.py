"""Cases V01-V30 of the reliability page. A frame's grey level is its index, so any frame tells which one it is."""

from __future__ import annotations

import io
import os
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vlmkit.errors import MediaDecodeError, MediaError, MediaFormatError, MediaLimitError, VlmkitError
from vlmkit.limits import Limits
from vlmkit.parts.samplers.uniform import Config as Uniform
from vlmkit.processing.clips import Clip
from vlmkit.processing.media import probe, read_clip

MS = Fraction(1, 1000)


def level(index: int) -> int:
    return 16 + 5 * (index % 45)


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """The level everywhere, but a white patch in the upper left corner."""
    array = np.full((height, width, 3), level(index), np.uint8)
    array[: height // 4, : width // 4] = 255
    return array


def encode(
    times: list[int] | int = 40,
    form: str = "mp4",
    codec: str = "libx264",
    pix: str = "yuv420p",
    size: tuple[int, int] = (48, 64),
    turn: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """A clip whose frames are shown at `times` milliseconds (or so many, 40 ms apart)."""
    times = [40 * at for at in range(times)] if isinstance(times, int) else times
    unit = Fraction(1, 25) if form == "avi" else MS
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        given = {"g": "10", "bf": "2", "crf": "8"} if options is None else options
        stream = container.add_stream(codec, rate=25, options=given)
        stream.height, stream.width = size
        stream.pix_fmt = pix
        stream.codec_context.time_base = unit
        if turn:
            stream.set_display_rotation(turn)
        for at, milliseconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(at, *size), format="rgb24")
            frame.pts, frame.time_base = int(milliseconds * MS / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def seen(frame: Image.Image) -> int:
    """The index a frame shows."""
    return round((float(np.asarray(frame)[frame.height // 2 :, frame.width // 2 :].mean()) - 16) / 5)


def box(data: bytes, path: str) -> tuple[int, int]:
    """Start and end of the body of an MP4 box, such as moov/trak/mdia/mdhd."""
    start, end = 0, len(data)
    for name in path.encode().split(b"/"):
        while True:
            assert start < end, path
            size, kind = struct.unpack_from(">I4s", data, start)
            if kind == name:
                start, end = start + 8, start + size
                break
            start += size
    return start, end


def patch(data: bytes, path: str, offset: int, body: bytes) -> bytes:
    at = box(data, path)[0] + offset
    return data[:at] + body + data[at + len(body) :]


def flip(data: bytes, start: int, end: int, every: int) -> bytes:
    changed = bytearray(data)
    for at in range(start, end, every):
        changed[at] ^= 0xA5
    return bytes(changed)


MP4 = encode()
MKV = encode(form="matroska")
AVI = encode(form="avi", codec="mpeg4", options={"g": "10", "qmin": "1", "qmax": "2"})
GOOD = {
    "mp4": MP4, "mkv": MKV, "avi": AVI, "mov": encode(form="mov"),
    "webm": encode(form="webm", codec="libvpx-vp9", options={"g": "10", "deadline": "realtime"}),
    "avi h264": encode(form="avi"),
    "avi mjpeg": encode(form="avi", codec="mjpeg", pix="yuvj420p", options={}),
    "V04 avi without an index": b"RIFF" + struct.pack("<I", AVI.rindex(b"idx1") - 8) + AVI[8 : AVI.rindex(b"idx1")],
    "V13 reordered, open groups": encode(options={"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0:crf=8"}),
    "V16 odd size": encode(pix="yuv444p", size=(47, 63)),
    "V17 ten bit": encode(pix="yuv420p10le"),
    "V18 grey": encode(form="matroska", codec="ffv1", pix="gray", options={}),
    "no key but the first": encode(options={"g": "1000", "bf": "2", "crf": "8"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_any_frame_of_a_good_clip_is_the_right_one(name: str) -> None:
    clip = probe(GOOD[name])
    assert clip.frames == 40
    assert clip.fps == pytest.approx(25)
    assert clip.duration == pytest.approx(1.6)
    assert clip.times == pytest.approx([at / 25 for at in range(40)])
    for wanted in ([0], [39], [3, 9, 10, 11, 25], list(range(0, 40, 5)), list(range(40))):
        assert [seen(frame) for frame in clip.read(wanted)] == wanted
    assert (clip.height, clip.width) == clip.read([7])[0].size[::-1]


def test_seeking_decodes_little() -> None:
    data = encode(400, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with Limits(video_max_decoded_frames=11):  # one group of pictures, not 395 frames before it
        clip = Clip(data)
        assert len(clip.read([395])) == 1
    with Limits(video_max_decoded_frames=8), pytest.raises(MediaLimitError, match=r"video\.max_decoded_frames"):
        Clip(data).read([399])


def test_true_times() -> None:
    """V11 variable frame rate, V12 start offset."""
    times = [7 * at * at for at in range(40)]
    frames, shown = read_clip(encode(times), Uniform(frames=5).build())
    assert [seen(frame) for frame in frames] == [0, 8, 16, 24, 32]
    assert shown == pytest.approx([times[at] / 1000 for at in (0, 8, 16, 24, 32)], abs=1e-3)
    late = probe(encode([5000 + 40 * at for at in range(40)]))
    assert late.times[0] == pytest.approx(5)
    assert late.duration == pytest.approx(1.6)
    assert seen(late.read([20])[0]) == 20


def test_fewer_frames_than_asked() -> None:
    """V14"""
    frames, times = read_clip(encode(1), Uniform(frames=8).build())
    assert [seen(frame) for frame in frames] == [0] * 8
    assert times == [0] * 8


@pytest.mark.parametrize(("turn", "corner"), [(90, (0, 1)), (180, (1, 1)), (-90, (1, 0)), (0, (0, 0))])
def test_rotation(turn: int, corner: tuple[int, int]) -> None:
    """V15: the matrix turns the clip by `turn` degrees; the white corner tells where it went, as a player shows it."""
    clip = probe(encode(4, form="mov", turn=turn))
    frame = clip.read([1])[0]
    assert (clip.height, clip.width) == ((64, 48) if turn in (90, -90) else (48, 64)) == frame.size[::-1]
    corners = np.asarray(frame.convert("L")).astype(int)[[4, -5]][:, [4, -5]]
    bright = np.unravel_index(corners.argmax(), (2, 2))
    with av.open(io.BytesIO(encode(4, form="mov", turn=turn))) as container:
        told = next(container.decode(video=0)).rotation  # degrees, counterclockwise
    expected = np.rot90([[1, 0], [0, 0]], told // 90)
    assert expected[bright] == 1
    assert (bright == corner) or turn in (90, -90)


def sizes_change() -> bytes:
    """V19: JPEG frames of two sizes in one stream."""
    out = io.BytesIO()
    with av.open(out, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for at in range(8):
            jpeg = io.BytesIO()
            Image.fromarray(picture(at, *((48, 64) if at < 4 else (96, 32)))).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts = stream, at, at
            packet.time_base, packet.is_keyframe = Fraction(1, 25), True
            container.mux(packet)
    return out.getvalue()


def tone(form: str = "mp4", codec: str = "aac") -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def many_streams() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        streams = [container.add_stream("mjpeg", rate=25) for _ in range(40)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return out.getvalue()


def no_frames() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return out.getvalue()


def bare() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


DATA = box(MP4, "mdat")
STSD = "moov/trak/mdia/minf/stbl/stsd"
STSZ = "moov/trak/mdia/minf/stbl/stsz"
BAD: dict[str, tuple[bytes, tuple[type[VlmkitError], ...]]] = {
    "V01 no frame": (no_frames(), (MediaDecodeError, MediaFormatError)),
    "V02 header only": (MP4[:32], (MediaDecodeError, MediaFormatError)),
    **{f"V03 {name} cut at {at}": (data[: len(data) * at // 100], (MediaDecodeError,))
       for name, data in (("mp4", MP4), ("mkv", MKV), ("avi", AVI)) for at in (20, 50, 75, 95, 99)},
    "V04 index missing": (MP4[: box(MP4, "moov")[0] - 8], (MediaDecodeError,)),
    "V05 flipped data": (flip(MP4, DATA[0] + 900, DATA[1], 7), (MediaDecodeError,)),
    "V05 flipped data in mkv": (flip(MKV, len(MKV) // 2, len(MKV) * 9 // 10, 5), (MediaDecodeError,)),
    "V19 size change": (sizes_change(), (MediaDecodeError,)),
    "V20 audio only": (tone(), (MediaFormatError,)),
    "V21 many streams": (many_streams(), (MediaLimitError,)),
    "V22 unknown codec": (patch(MP4, STSD, 8 + 4, b"zzzz"), (MediaFormatError, MediaDecodeError)),
    "V23 too long": (encode([0, 4_000_000]), (MediaLimitError,)),
    "V24 playlist of files": (b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n", (MediaFormatError,)),
    "V25 playlist of addresses": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n", (MediaFormatError,)),
    "V26 list file": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", (MediaFormatError,)),
    "V27 session description": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", (MediaFormatError,)),
    "V28 manifest": (b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>", (MediaFormatError,)),
    "V30 bare stream": (bare(), (MediaFormatError,)),
    "V30 text": (b"a text and nothing else, long enough to be looked at", (MediaFormatError,)),
    "V30 sound": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), (MediaFormatError,)),
    "empty": (b"", (MediaDecodeError,)),
    "an endless row of boxes": (b"\0\0\0\x08free" * 200_000, (MediaDecodeError,)),
}  # fmt: skip


def read_all(data: bytes) -> None:
    clip = probe(data)
    clip.read(list(range(clip.frames)))


@pytest.mark.parametrize("name", BAD)
def test_bad_clips_are_one_clear_error_in_bounds(name: str) -> None:
    data, kinds = BAD[name]
    started = time.perf_counter()
    with pytest.raises(VlmkitError) as caught:
        read_all(data)
    assert type(caught.value) in kinds
    assert time.perf_counter() - started < 3
    assert " at 0x" not in str(caught.value)
    assert [seen(frame) for frame in probe(MP4).read([5, 31])] == [5, 31]


LIES = {
    "V06 flipped index": flip(MP4, box(MP4, STSZ)[0] + 12, box(MP4, STSZ)[0] + 60, 3),
    "V06 flipped times": flip(MP4, *box(MP4, "moov/trak/mdia/minf/stbl/stts"), 5),
    "V06 flipped everything": flip(MP4, *box(MP4, "moov"), 11),
    "V07 duration of ages": patch(MP4, "moov/trak/mdia/mdhd", 16, b"\x7f\xff\xff\xff"),
    "V07 no duration": patch(patch(MP4, "moov/trak/mdia/mdhd", 16, bytes(4)), "moov/mvhd", 16, bytes(4)),
    "V08 sample count": patch(MP4, STSZ, 8, b"\x0f\xff\xff\xff"),
    "V08 equal samples without end": patch(MP4, STSZ, 4, b"\0\0\0\1\x7f\xff\xff\xff"),
    "V08 repeated": patch(MP4, "moov/trak/mdia/minf/stbl/stts", 8, b"\x7f\xff\xff\xff"),
    "V08 AVI frames": AVI[: AVI.index(b"avih") + 8 + 16] + b"\xff\xff\xff\x7f" + AVI[AVI.index(b"avih") + 8 + 20 :],
    "V09 time scale zero": patch(MP4, "moov/trak/mdia/mdhd", 12, bytes(4)),
    "V10 large size": patch(MP4, STSD, 8 + 8 + 24, struct.pack(">HH", 65000, 65000)),
    "V10 size": patch(MP4, STSD, 8 + 8 + 24, struct.pack(">HH", 17, 9)),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_in_headers_end_in_right_frames_or_one_error(name: str) -> None:
    started = time.perf_counter()
    try:
        clip = probe(LIES[name])
        frames = clip.read([0, clip.frames // 2, clip.frames - 1])
        assert [seen(frame) for frame in frames] == [0, clip.frames // 2, clip.frames - 1]
        assert clip.frames == 40
    except MediaError:
        assert "V08 AVI" not in name
        assert "no duration" not in name
    assert time.perf_counter() - started < 3


def test_a_path_is_a_path(tmp_path: Path) -> None:
    """V29, V30, M8: prefixes mean nothing; only regular files; names say nothing."""
    path = tmp_path / "clip.txt"
    path.write_bytes(MP4)
    assert probe(path).frames == 40
    for name in (
        f"file:{path}",
        f"concat:{path}|{path}",
        "http://127.0.0.1/x.mp4",
        f"subfile,,start,0,end,9,,:{path}",
        "pipe:0",
        "-",
    ):
        with pytest.raises(MediaError, match="no such file"):
            probe(name)
    for name, body in (("picture.mp4", b"\x89PNG\r\n\x1a\n"), ("heic.mp4", b"\0\0\0\x18ftypheic" + bytes(20))):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(MediaFormatError):
            probe(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaFormatError):
        probe(tmp_path / "pipe")
