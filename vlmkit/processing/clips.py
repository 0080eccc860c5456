"""Clips from a path, bytes, a list of pictures or an array of frames. What is not asked for is not decoded."""

from __future__ import annotations

import bisect
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from ..contracts import VideoSampler
from ..errors import MediaDecodeError, MediaFormatError, MediaLimitError
from ..limits import current
from .containers import check_whole, demuxer
from .files import naming, open_file
from .pictures import look, open_picture

# packets of these codecs may hold a frame that is never shown
HIDING = ("vp8", "vp9", "av1")
# a damaged frame is an error, not a grey patch
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


class Frames:
    """Frames given by hand.   frames, fps, height, width, duration [s], times [frames, s]"""

    def __init__(self, frames: Sequence[Any], fps: float = 1.0) -> None:
        if not len(frames):
            raise MediaDecodeError("a clip without frames")
        _bound(len(frames), "video.max_decoded_frames")
        self._given, self.frames, self.fps = frames, len(frames), fps
        first = look(frames[0])
        self.height, self.width = first.height, first.width
        self.times = [at / fps for at in range(self.frames)]
        self.duration = self.frames / fps

    def choose(self, sampler: VideoSampler) -> list[int]:
        """Which frames to use: given ones are all meant, unless the sampler wants fewer."""
        wanted = self._pick(sampler)
        return wanted if self.frames > len(wanted) else list(range(self.frames))

    def decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture) for sorted, unique indices."""
        for at in wanted:
            picture = open_picture(self._given[at])
            self._check(picture.height, picture.width, at)
            yield at, picture

    def read(self, wanted: Sequence[int]) -> list[Image.Image]:
        """One picture for each index, which may come in any order and more than once."""
        found = dict(self.decode(sorted(set(wanted))))
        return [found[at] for at in wanted]

    def _pick(self, sampler: VideoSampler) -> list[int]:
        wanted = [min(max(at, 0), self.frames - 1) for at in sampler.pick(self.frames, self.fps)]
        _bound(len(wanted), "video.max_sampled_frames")
        return wanted

    def _check(self, height: int, width: int, at: int) -> None:
        if (height, width) != (self.height, self.width):
            raise MediaDecodeError(f"frames of different sizes: {self.height} x {self.width}, but number {at} is "
                                   f"{height} x {width}")


class Turn(NamedTuple):
    """A display matrix of right angles."""

    swap: bool = False  # rows become columns, before flipping
    across: bool = False
    down: bool = False


class Clip(Frames):
    """A clip in a file. Its packets are listed once; frames are decoded when they are asked for."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self._source = source
        with self._open() as (container, stream):
            self._codec = stream.codec_context.name
            shown, keys = self._scan(container, stream)
            demuxed = container.format.name
            rate = stream.average_rate or stream.guessed_rate
            step = stream.time_base or Fraction(1)
        if step >= 1:  # what ffmpeg makes of a time scale of zero; it then drops frames by their wrong times
            raise MediaDecodeError("its unit of time is nonsense")
        self.frames = len(shown)
        if not self.frames:
            raise MediaDecodeError("a clip without frames")
        known = {pts for pts in shown if pts is not None}
        # AVI has no times of presentation: where frames are reordered they can only be counted, as they come
        guessed = demuxed == "avi" and len(keys) < self.frames
        self._points = sorted(known) if len(known) == self.frames and not guessed else []
        self._keys = sorted(keys)
        span = (self._points[-1] - self._points[0]) * step if self._points else Fraction(0)
        self.fps = float((self.frames - 1) / span if span else rate or 1)
        self.times = ([float(pts * step) for pts in self._points] or [at / self.fps for at in range(self.frames)])
        self.duration = self.times[-1] - self.times[0] + 1 / self.fps
        _bound(self.duration, "video.max_duration_s")
        self._look()

    def choose(self, sampler: VideoSampler) -> list[int]:
        """Which frames to use; a clip that is too short gives some of them twice."""
        return self._pick(sampler)

    def decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture) for sorted, unique indices. Seeks; where that goes wrong, reads from the start."""
        left, started = list(wanted), time.monotonic()
        with naming(self._source):
            for seek in (True, False) if self._points else (False,):
                frames = self._walk(list(left), seek, started)
                while left:
                    try:
                        frame = next(frames)
                    except MediaDecodeError:
                        break
                    yield left[0], self._picture(frame, left[0])
                    left.pop(0)
            if left:
                raise MediaDecodeError(f"damaged: {len(wanted) - len(left)} of {len(wanted)} frames could be read")

    def _walk(self, wanted: list[int], seek: bool, started: float) -> Iterator[Any]:
        """Decoded frames for sorted indices, skipping ahead to key frames when there is one in between."""
        limits = current()
        with self._open() as (container, stream):
            stream.thread_type = "AUTO"
            stream.codec_context.options = STRICT
            frames = container.decode(stream)
            decoded, last = 0, None
            for at in wanted:
                target = self._points[at] if self._points else at
                key = self._key(target)
                if seek and key is not None and (last is None or key > last):
                    with _ffmpeg("the index cannot be followed"):
                        container.seek(key, stream=stream)
                    frames = container.decode(stream)
                while last is None or last < target:
                    with _ffmpeg("a frame is damaged"):
                        frame = next(frames, None)
                    decoded += 1
                    if decoded > limits.video_max_decoded_frames:
                        _bound(decoded, "video.max_decoded_frames")
                    if time.monotonic() - started > limits.video_decode_seconds:
                        _bound(time.monotonic() - started, "video.decode_seconds")
                    if frame is None or frame.is_corrupt:
                        raise MediaDecodeError("a frame is missing or damaged")
                    last = decoded - 1 if not self._points else frame.pts
                    if last is None:
                        raise MediaDecodeError("a frame without a time")
                if last != target and self._codec not in HIDING:
                    raise MediaDecodeError("a frame is missing")
                yield frame

    def _key(self, target: int) -> int | None:
        """The time of the last key frame that is not after a frame."""
        place = bisect.bisect_right(self._keys, target)
        return self._keys[place - 1] if place else None

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The container and its stream of frames: demuxer chosen by content, from a handle, without protocols."""
        limits = current()
        with open_file(self._source, limits.video_max_bytes, "video.max_bytes") as file:
            name = demuxer(file)
            check_whole(file, name)
            with _ffmpeg(f"the {name} headers are damaged"):
                container = av.open(file, format=name, options={"protocol_whitelist": ""}, metadata_errors="replace",
                                    timeout=limits.video_open_seconds)
            with container:
                yield container, _stream(container)

    def _scan(self, container: Any, stream: Any) -> tuple[list[int | None], list[int]]:
        """Time stamps of all shown frames, and of key frames; nothing is decoded."""
        shown: list[int | None] = []
        keys: list[int] = []
        started = time.monotonic()
        with _ffmpeg("the file is damaged"):
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise MediaDecodeError("the file is cut off or damaged")
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                if not packet.is_discard:
                    shown.append(packet.pts)
                if not len(shown) % 256:
                    _bound(time.monotonic() - started, "video.open_seconds")
        return shown, keys

    def _look(self) -> None:
        """The first frame tells the true size and how it is turned."""
        self._turn = Turn()
        with self._open() as (container, stream), _ffmpeg("the first frame is damaged"):
            frame = next(container.decode(stream), None)
            if frame is None:
                raise MediaDecodeError("no frame can be decoded")
            self._size = frame.width, frame.height
            _bound(frame.width * frame.height, "video.max_frame_pixels")
            self._turn = _matrix(frame)
        self.width, self.height = self._size[::-1] if self._turn.swap else self._size

    def _picture(self, frame: av.VideoFrame, at: int) -> Image.Image:
        """An upright RGB picture."""
        if (frame.width, frame.height) != self._size:
            raise MediaDecodeError(f"frames of different sizes: number {at} is {frame.height} x {frame.width}, the "
                                   f"first {self._size[1]} x {self._size[0]}")
        pixels = frame.to_ndarray(format="rgb24")
        if self._turn.swap:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if self._turn.down else 1, :: -1 if self._turn.across else 1]
        return Image.fromarray(np.ascontiguousarray(pixels))


def probe(source: Any, fps: float = 1.0) -> Frames:
    """What a clip is, without decoding it. `fps` is of frames given by hand."""
    if isinstance(source, Frames):
        return source
    if isinstance(source, str | os.PathLike | bytes | bytearray):
        with naming(source):
            return Clip(bytes(source) if isinstance(source, bytearray) else source)
    if hasattr(source, "__array__"):
        source = np.asarray(source)
        if source.ndim != 4:
            raise MediaFormatError(f"an array of shape {list(source.shape)}; a clip is [frames, height, width, 3]")
    elif not isinstance(source, Sequence):
        raise MediaFormatError(f"a clip is a path, bytes, a list of frames or an array, not {type(source).__name__}")
    return Frames(source, fps)


def read_clip(source: Any, sampler: VideoSampler) -> tuple[list[Image.Image], list[float]]:
    """The frames a sampler picks, and when each is shown, in seconds."""
    clip = probe(source)
    wanted = clip.choose(sampler)
    return clip.read(wanted), [clip.times[at] for at in wanted]


def _stream(container: Any) -> Any:
    """The first stream of frames, with everything a header tells held against the limits."""
    _bound(len(container.streams), "video.max_streams")
    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        raise MediaFormatError("no stream of frames in it")
    if stream.codec_context is None or not stream.codec_context.name:
        raise MediaFormatError("its codec is unknown")
    header = [container.duration / av.time_base if container.duration else 0,
              float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0]
    _bound(max(header), "video.max_duration_s")
    _bound(stream.codec_context.width * stream.codec_context.height, "video.max_frame_pixels")
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def _matrix(frame: Any) -> Turn:
    """How a frame is meant to be shown."""
    found = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if found is None:
        return Turn()
    a, b, _, c, d, *_ = np.frombuffer(bytes(found), np.int32).tolist()
    if b == c == 0 and a and d:
        return Turn(False, a < 0, d < 0)
    if a == d == 0 and b and c:
        return Turn(True, c < 0, b < 0)
    warnings.warn("the clip is turned by an odd angle; it is taken as it is", stacklevel=4)
    return Turn()


def _bound(got: float, setting: str) -> None:
    most = getattr(current(), setting.replace(".", "_"))
    if got > most:
        raise MediaLimitError("the clip is more than is read", limit=most, got=got, setting=setting)


@contextmanager
def _ffmpeg(what: str) -> Iterator[None]:
    """Native errors become one of ours."""
    try:
        yield
    except (av.error.FFmpegError, ValueError, OverflowError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise MediaDecodeError(f"{what} ({type(error).__name__})") from None
    except MemoryError:
        raise MediaLimitError("the clip needs more memory than there is", limit="memory", got="more",
                              setting="video.max_frame_pixels") from None
