"""Clips from a path, bytes, a list of pictures or an array of frames. What is not asked for is not decoded."""

from __future__ import annotations

import bisect
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from ..contracts import VideoSampler
from ..errors import MediaDecodeError, MediaFormatError
from .files import naming
from .pictures import look, open_picture
from .streams import Budget, Opened, bound, open_stream, scan, walk

AHEAD = 256 << 20  # bytes of pictures that threads may have ready before their turn
TURNS = Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM  # as in Turn


class Frames:
    """Frames given by hand.   frames, fps, height, width, duration [s], times [frames, s]"""

    def __init__(self, frames: Sequence[Any], fps: float = 1.0) -> None:
        if not len(frames):
            raise MediaDecodeError("a clip without frames")
        bound(len(frames), "video.max_decoded_frames")
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
        bound(len(wanted), "video.max_sampled_frames")
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
    """A clip in a file. Its packets are listed once; frames are decoded when they are asked for, but the first."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self._source = source
        with open_stream(source) as opened:
            container, stream = opened
            shown, keys = scan(opened)
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
        bound(self.duration, "video.max_duration_s")
        self._size, self._turn = (0, 0), Turn()
        self._first: Image.Image | None = None
        self._first = self.read([0])[0]  # it tells the true size and how it is turned, and most samplers want it
        self.height, self.width = self._first.height, self._first.width

    def choose(self, sampler: VideoSampler) -> list[int]:
        """Which frames to use; a clip that is too short gives some of them twice."""
        return self._pick(sampler)

    def decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture) for sorted, unique indices. Seeks; where that goes wrong, reads from the start."""
        left, budget = list(wanted), Budget()
        if self._first and left[:1] == [0]:
            yield left.pop(0), self._first.copy()
        with naming(self._source):
            for way in (self._side_by_side, self._from_the_start):
                try:
                    for picture in way(list(left), budget):
                        yield left[0], picture
                        left.pop(0)
                except MediaDecodeError:
                    continue
            if left:
                raise MediaDecodeError(f"damaged: {len(wanted) - len(left)} of {len(wanted)} frames could be read")

    def _side_by_side(self, wanted: list[int], budget: Budget) -> Iterator[Image.Image]:
        """Each group of wanted frames from its key frame on, in as many threads as torch has."""
        groups, cores = self._groups(wanted), torch.get_num_threads()
        threads = max(1, min(cores, len(groups)))
        ahead = AHEAD // (4 * self._size[0] * self._size[1] or 1)  # so many pictures may wait for their turn
        if any(len(group) > ahead for _, group in groups):
            threads = 1
        idle: deque[Opened] = deque()  # opened, and used by nobody at the moment
        with ExitStack() as stack:
            def read(key: int, group: list[int]) -> Iterator[Image.Image]:
                opened = idle.popleft() if idle else stack.enter_context(open_stream(self._source, cores // threads))
                points = [self._points[at] for at in group]
                for at, frame in zip(group, walk(opened, points, key, budget), strict=True):
                    yield self._picture(frame, at)
                idle.append(opened)

            if threads == 1:
                for key, group in groups:
                    yield from read(key, group)
                return
            pool = ThreadPoolExecutor(threads)
            coming: deque[tuple[int, Future[list[Image.Image]]]] = deque()
            try:
                for key, group in groups:
                    todo = copy_context().run  # a thread has limits of its own, unless it is given ours
                    coming.append((len(group), pool.submit(todo, lambda *given: list(read(*given)), key, group)))
                    while sum(size for size, _ in coming) > ahead:
                        yield from coming.popleft()[1].result()
                while coming:
                    yield from coming.popleft()[1].result()
            finally:
                budget.stopped = True
                pool.shutdown(cancel_futures=True)
                budget.stopped = False

    def _from_the_start(self, wanted: list[int], budget: Budget) -> Iterator[Image.Image]:
        """Everything up to the last of them is decoded, and nothing of the index believed."""
        if not wanted:
            return
        points = [self._points[at] for at in wanted] if self._points else wanted
        with open_stream(self._source, torch.get_num_threads()) as opened:
            for at, frame in zip(wanted, walk(opened, points, None, budget, not self._points), strict=True):
                yield self._picture(frame, at)

    def _groups(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """Wanted frames by the time of the last key frame that is not after them; none if one has no such."""
        groups: dict[int, list[int]] = {}
        for at in wanted if self._points else ():
            place = bisect.bisect_right(self._keys, self._points[at])
            if not place:
                return []
            groups.setdefault(self._keys[place - 1], []).append(at)
        return list(groups.items())

    def _picture(self, frame: av.VideoFrame, at: int) -> Image.Image:
        """An upright RGB picture."""
        if not self._first:
            bound(frame.width * frame.height, "video.max_frame_pixels")
            self._size, self._turn = (frame.width, frame.height), _matrix(frame)
        if (frame.width, frame.height) != self._size:
            raise MediaDecodeError(f"frames of different sizes: number {at} is {frame.height} x {frame.width}, the "
                                   f"first {self._size[1]} x {self._size[0]}")
        plane = frame.reformat(format="rgb24").planes[0]
        size = frame.width, frame.height
        picture = Image.frombuffer("RGB", size, plane, "raw", "RGB", plane.line_size, 1)  # a copy, without the padding
        for turned, how in zip(self._turn, TURNS, strict=True):
            picture = picture.transpose(how) if turned else picture
        return picture


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
