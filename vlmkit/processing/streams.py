"""The stream of frames in a clip's file: opened within limits, listed without decoding, walked to the wanted frames."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import av

from ..errors import MediaDecodeError, MediaFormatError, MediaLimitError
from ..limits import current
from .containers import check_whole, demuxer
from .files import open_file

# packets of these codecs may hold a frame that is never shown
HIDING = ("vp8", "vp9", "av1")
# a damaged frame is an error, not a grey patch
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
# a packet of H.264 says for sure whether another one needs it; its frames wait for their turn as the standard wants it
# where the stream does not tell how long, and none is dropped
H264, PATIENT = "h264", {"strict": "strict"}


class Opened(NamedTuple):
    """A container, and its first stream of frames."""

    container: Any
    stream: Any


class Budget:
    """What one reading may cost in all, in however many threads it is done."""

    def __init__(self) -> None:
        limits = current()
        self._most, self._seconds = limits.video_max_decoded_frames, limits.video_decode_seconds
        self._begun, self._packets = time.monotonic(), itertools.count(1)
        self.stopped = False

    def spend(self) -> None:
        """One packet more."""
        packets, seconds = next(self._packets), time.monotonic() - self._begun
        if packets > self._most:
            bound(packets, "video.max_decoded_frames")
        if seconds > self._seconds:
            bound(seconds, "video.decode_seconds")
        if self.stopped:
            raise MediaDecodeError("nobody waits for more frames")


@contextmanager
def open_stream(source: str | os.PathLike[str] | bytes, threads: int = 1) -> Iterator[Opened]:
    """Demuxer chosen by content, from a handle, without protocols; nothing is decoded for the sake of its headers."""
    limits = current()
    with open_file(source, limits.video_max_bytes, "video.max_bytes") as file:
        name = demuxer(file)
        check_whole(file, name)
        with native(f"the {name} headers are damaged"):
            container = av.open(file, format=name, options={"protocol_whitelist": "", "skip_frame": "all"},
                                metadata_errors="replace", timeout=limits.video_open_seconds)
        with container:
            stream = _stream(container)
            decoder = stream.codec_context
            decoder.options = STRICT | PATIENT if decoder.name == H264 else STRICT
            decoder.thread_count = threads
            stream.thread_type = "AUTO" if threads > 1 else "NONE"
            yield Opened(container, stream)


def scan(opened: Opened) -> tuple[list[int | None], list[int]]:
    """Time stamps of all shown frames, and of key frames; nothing is decoded."""
    shown: list[int | None] = []
    keys: list[int] = []
    started = time.monotonic()
    with native("the file is damaged"):
        for packet in opened.container.demux(opened.stream):
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise MediaDecodeError("the file is cut off or damaged")
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if not packet.is_discard:
                shown.append(packet.pts)
            if not len(shown) % 256:
                bound(time.monotonic() - started, "video.open_seconds")
    return shown, keys


def walk(opened: Opened, times: Sequence[int], key: int | None, budget: Budget, counted: bool = False) -> Iterator[Any]:
    """Decoded frames for sorted time stamps, from a key frame on; without one, from the start and leaving nothing out.

    counted   the times are numbers of frames, in the order in which they are shown
    """
    due, hiding = deque(times), opened.stream.codec_context.name in HIDING
    fed = _feed(opened, None if counted or hiding else set(times), key, budget)
    for number, frame in enumerate(fed):
        shown = number if counted else frame.pts
        if shown is None:
            raise MediaDecodeError("a frame without a time")
        if key is not None and shown < key:  # shown before the key frame, though stored behind it
            continue
        if frame.is_corrupt:
            raise MediaDecodeError("a frame is damaged")
        while due and shown >= due[0]:
            if shown != due.popleft() and not hiding:
                raise MediaDecodeError("a frame is missing")
            yield frame
        if not due:
            return
    raise MediaDecodeError("a frame is missing")


def _feed(opened: Opened, wanted: set[int] | None, key: int | None, budget: Budget) -> Iterator[Any]:
    """What the decoder gives, until it was given all wanted packets. Frames no other one needs are left out."""
    (container, stream), decoder, landed = opened, opened.stream.codec_context, None
    if key is not None:
        with native("the index cannot be followed"):
            container.seek(key, stream=stream)
    left_out = "NONREF" if key is not None and wanted is not None and decoder.name == H264 else "DEFAULT"
    with native("a frame is damaged"):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            landed = packet.pts if landed is None else landed
            if key is not None and (landed is None or landed > key):
                raise MediaDecodeError("the index leads to a wrong place")
            decoder.skip_frame = "DEFAULT" if wanted and packet.pts in wanted else left_out
            budget.spend()
            yield from decoder.decode(packet)
            if wanted is not None:
                wanted.discard(packet.pts)
                if not wanted:
                    break
        yield from decoder.decode(None)


def _stream(container: Any) -> Any:
    """The first stream of frames, with everything a header tells held against the limits."""
    bound(len(container.streams), "video.max_streams")
    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        raise MediaFormatError("no stream of frames in it")
    if stream.codec_context is None or not stream.codec_context.name:
        raise MediaFormatError("its codec is unknown")
    header = [container.duration / av.time_base if container.duration else 0,
              float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0]
    bound(max(header), "video.max_duration_s")
    bound(stream.codec_context.width * stream.codec_context.height, "video.max_frame_pixels")
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def bound(got: float, setting: str) -> None:
    """Raise when a clip is more than a limit allows."""
    most = getattr(current(), setting.replace(".", "_"))
    if got > most:
        raise MediaLimitError("the clip is more than is read", limit=most, got=got, setting=setting)


@contextmanager
def native(what: str) -> Iterator[None]:
    """Native errors become one of ours."""
    try:
        yield
    except (av.error.FFmpegError, ValueError, OverflowError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise MediaDecodeError(f"{what} ({type(error).__name__})") from None
    except MemoryError:
        raise MediaLimitError("the clip needs more memory than there is", limit="memory", got="more",
                              setting="video.max_frame_pixels") from None
