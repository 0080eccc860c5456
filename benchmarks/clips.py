"""8 and 32 frames of a long clip: vlmkit, torchcodec, and decoding every frame as transformers' loader does.

    python benchmarks/clips.py [--folder FOLDER]

The clips are 1280 x 720 at 30 frames a second, H.264 as x264 writes it by itself (key frames where it is told, B-frames
that others refer to); a slow pan over a rough texture with two things that move. A key frame comes every 30 or every
250 frames. The clips of 5 and of 90 seconds are cut and joined from the one of 45 without encoding again: 8 frames of
each show what the length alone costs. Every side starts from the path; its frames are compared before it is timed.
torchcodec takes part where it and FFmpeg's libraries can be loaded: once by its default, with one thread, and once as
transformers asks it, with one for each core. `every frame` is PyAV, transformers' default; also with threads.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from measure import Bench, Side
from PIL import Image
from transformers.video_utils import load_video

from vlmkit.parts.samplers.uniform import Config
from vlmkit.processing.media import read_clip

HEIGHT, WIDTH, RATE, SECONDS = 720, 1280, 30, 45
UNIT = Fraction(1, 15360)  # of the files' time


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Noise in octaves, the rougher the weaker, as photographs have it.   -> [height, width] uint8"""
    draw, total = np.random.default_rng(seed), np.zeros((height, width), np.float32)
    for octave in range(2, 9):
        noise = draw.normal(0, 1, (height >> 8 - octave, width >> 8 - octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) * 0.6**octave
    return np.clip(128 + 90 * total / np.abs(total).max() * 2, 16, 235).astype(np.uint8)


def encode(path: Path, every: int) -> None:
    """A clip with a key frame for so many frames."""
    ground, colour = texture(1536, 2816, 1), texture(768, 1408, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(every), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for at in range(SECONDS * RATE):
            row, col = int(300 + 280 * np.sin(at / 90)), int(600 + 580 * np.sin(at / 130))
            luma = ground[row: row + HEIGHT, col: col + WIDTH].copy()
            for thing in (1, 2):
                top, left = 60 * thing + 7 * at // thing % 400, 9 * thing * at % 1000
                luma[top: top + 160, left: left + 200] = ground[:160, 300 * thing: 300 * thing + 200]
            chroma = colour[row // 2: row // 2 + HEIGHT // 2, col // 2: col // 2 + WIDTH // 2]
            planes = np.concatenate([luma.ravel(), chroma.ravel(), 255 - chroma.ravel()])
            frame = av.VideoFrame.from_ndarray(planes.reshape(HEIGHT * 3 // 2, WIDTH), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def copy(source: Path, path: Path, seconds: int) -> None:
    """The packets again and again, until so many seconds are full."""
    with av.open(str(path), "w") as container:
        for turn in range(-(-seconds // SECONDS)):
            with av.open(str(source)) as given:
                stream = given.streams.video[0]
                out = container.streams.video[0] if turn else container.add_stream_from_template(stream)
                shift, left = int(turn * SECONDS / stream.time_base), seconds - turn * SECONDS
                for packet in given.demux(stream):
                    if packet.size and packet.pts * stream.time_base < left:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, out
                        container.mux(packet)


def ready(folder: Path, seconds: int, every: int) -> Path:
    """The clip of so many seconds with a key frame for so many frames, made unless it is there."""
    path = folder / f"{seconds}s{every}.mp4"
    if not path.exists():
        part = path.with_suffix(".part.mp4")
        encode(part, every) if seconds == SECONDS else copy(ready(folder, SECONDS, every), part, seconds)
        part.rename(path)
    return path


def sides(path: Path, frames: int, codec: type | None) -> dict[str, Side]:
    """Each from a path to what its processor takes: pictures, or [frames, height, width, 3] uint8."""
    sampler = Config(frames=frames).build()

    def vlmkit() -> list[Image.Image]:
        return read_clip(path, sampler)[0]

    def torchcodec(threads: int) -> np.ndarray:
        decoder = codec(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
        return decoder.get_frames_at([at * len(decoder) // frames for at in range(frames)]).data.numpy()

    def everything() -> np.ndarray:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            wanted = {at * stream.frames // frames for at in range(frames)}
            decoded = enumerate(container.decode(stream))
            return np.stack([frame.to_ndarray(format="rgb24") for at, frame in decoded if at in wanted])

    theirs = {"torchcodec": lambda: torchcodec(1), "torchcodec, all threads": lambda: torchcodec(0)} if codec else {}
    return {"vlmkit": vlmkit, **theirs, "every frame": lambda: load_video(str(path), num_frames=frames)[0],
            "every frame, all threads": everything}


def same(ours: list[Image.Image], theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in ours]), theirs)


def their_decoder() -> type | None:
    """torchcodec's, if it finds its libraries."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}", flush=True)
        return None
    return VideoDecoder


def run(bench: Bench, folder: Path) -> None:
    codec = their_decoder()
    cases = [(8, SECONDS, 30), (8, 5, 30), (8, 90, 30), (32, SECONDS, 30), (8, SECONDS, 250), (32, SECONDS, 250)]
    for frames, seconds, every in cases[:2] if bench.options.quick else cases:
        path = ready(folder, seconds, every)
        bench.row(f"{frames} of {seconds} s, key frame every {every}", sides(path, frames, codec), same=same)


if __name__ == "__main__":
    bench = Bench("clips", __doc__, lambda ask: ask.add_argument("--folder", type=Path, help="where to keep the clips"))
    with tempfile.TemporaryDirectory() as folder:
        run(bench, bench.options.folder or Path(folder))
    bench.end()
