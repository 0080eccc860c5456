"""Cases I01-I34 of the reliability page: files made by hand, one clear error each, right colours from the good ones."""

from __future__ import annotations

import base64
import io
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vlmkit.errors import MediaDecodeError, MediaError, MediaFormatError, MediaLimitError, VlmkitError
from vlmkit.limits import Limits
from vlmkit.processing.media import look, open_picture, picture_id


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def zeros(count: int) -> bytes:
    """`count` zero bytes, deflated in pieces."""
    pack = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [pack.compress(block[: min(1 << 20, count - at)]) for at in range(0, count, 1 << 20)]
    return b"".join([*parts, pack.flush()])


def png(
    width: int,
    height: int,
    colour: int,
    rows: bytes | None = None,
    depth: int = 8,
    extra: bytes = b"",
    tail: bytes | None = None,
) -> bytes:
    """colour: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA. `rows` hold a filter byte each; None means zeros."""
    lanes = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    data = zeros(height * (1 + (width * lanes * depth + 7) // 8)) if rows is None else zlib.compress(rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + (chunk(b"IEND", b"") if tail is None else tail)
    )


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


NOISE = noise()
JPEG = saved(NOISE, "JPEG", quality=95)
PROGRESSIVE = saved(NOISE, "JPEG", quality=95, progressive=True)
PNG = saved(NOISE, "PNG")
WEBP = saved(NOISE, "WEBP", lossless=True)
PALETTE = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0]))
BAD: dict[str, tuple[bytes, type[VlmkitError]]] = {
    "I01 palette bomb": (png(20000, 20000, 3, extra=PALETTE), MediaLimitError),
    "I02 grey strip": (png(65000, 2, 0), MediaLimitError),
    "I03 header larger than data": (png(64, 64, 2, rows=bytes(193 * 4)), MediaDecodeError),
    "I04 33 MiB": (PNG + bytes(33 << 20), MediaLimitError),
    "I07 baseline JPEG cut": (JPEG[: len(JPEG) // 2], MediaDecodeError),
    "I08 progressive JPEG cut": (PROGRESSIVE[: len(PROGRESSIVE) // 2], MediaDecodeError),
    "I09 PNG cut": (PNG[: len(PNG) // 2], MediaDecodeError),
    "I09 PNG without its end": (PNG[:-12], MediaDecodeError),
    "I10 PNG with a bad checksum": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], MediaDecodeError),
    "I11 WebP cut": (WEBP[: len(WEBP) // 2], MediaDecodeError),
    "I11 WebP head": (WEBP[:24], MediaDecodeError),
    "I12 empty": (b"", MediaDecodeError),
    "I13 random bytes": (np.random.default_rng(1).bytes(5000), MediaFormatError),
    "I27 strip": (png(4020, 20, 2), MediaLimitError),
    "I29 TIFF": (saved(NOISE, "TIFF"), MediaFormatError),
    "I29 EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", MediaFormatError),
    "I29 SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", MediaFormatError),
    "I29 ICO": (saved(NOISE.resize((32, 32)), "ICO"), MediaFormatError),
    "I29 JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), MediaFormatError),
    "WebP canvas": (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8), MediaLimitError),
    "GIF cut": (saved(NOISE, "GIF")[:900], MediaDecodeError),
    "BMP cut": (saved(NOISE, "BMP")[:2000], MediaDecodeError),
    "zero wide": (png(0, 5, 2, rows=b""), MediaDecodeError),
    "many scans": (PROGRESSIVE[:-2] + b"\xff\xda" * 700_000, MediaLimitError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_clear_error_in_bounds(name: str) -> None:
    data, kind = BAD[name]
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(kind) as caught:
        open_picture(data)
    assert time.perf_counter() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 128 << 20
    tracemalloc.stop()
    assert type(caught.value) is kind
    assert " at 0x" not in str(caught.value)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert open_picture(PNG).tobytes() == NOISE.tobytes()  # the next good one is as before


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_chunks_that_unfold_are_not_unfolded(kind: bytes) -> None:
    """I05, I06: 100 MB in a note or a colour profile say nothing about the pixels."""
    body = b"k\0" + {b"zTXt": b"\0", b"iTXt": b"\1\0\0\0", b"iCCP": b"\0"}[kind] + zeros(100 << 20)
    tracemalloc.start()
    picture = open_picture(png(2, 1, 2, rows=b"\0" + bytes([1, 2, 3, 4, 5, 6]), extra=chunk(kind, body)))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert np.asarray(picture).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def pixels(source: object) -> list[list[list[int]]]:
    picture = open_picture(source)
    assert picture.mode == "RGB"
    return np.asarray(picture).tolist()


GOOD: dict[str, tuple[bytes, list[list[int]]]] = {
    "I14 16-bit grey": (png(3, 1, 0, b"\0" + struct.pack(">3H", 0, 32768, 65535), 16), [[0] * 3, [128] * 3, [255] * 3]),
    "I15 16-bit RGB": (png(1, 1, 2, b"\0" + struct.pack(">3H", 65535, 32768, 256), 16), [[255, 128, 1]]),
    "I16 1-bit": (png(3, 1, 0, b"\0\xa0", 1), [[255] * 3, [0] * 3, [255] * 3]),
    "I17 palette": (png(2, 1, 3, b"\0\1\0", extra=PALETTE), [[0, 255, 0], [255, 0, 0]]),
    "I18 clear palette": (png(2, 1, 3, b"\0\1\0", extra=PALETTE + chunk(b"tRNS", b"\0")), [[0, 255, 0], [255] * 3]),
    "I19 hidden colour": (png(2, 1, 6, b"\0" + bytes([9, 9, 9, 0, 9, 8, 7, 255])), [[255] * 3, [9, 8, 7]]),
    "I20 grey + alpha": (png(2, 1, 4, b"\0" + bytes([9, 0, 9, 255])), [[255] * 3, [9] * 3]),
    "clear 16-bit grey": (png(2, 1, 0, b"\0" + struct.pack(">2H", 7, 65535), 16,
                              extra=chunk(b"tRNS", struct.pack(">H", 7))), [[255] * 3, [255] * 3]),
    "clear RGB": (png(2, 1, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), extra=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
                  [[255] * 3, [4, 5, 6]]),
    "I24 broken ICC": (png(1, 1, 2, b"\0\1\2\3", extra=chunk(b"iCCP", b"p\0\0rubbish")), [[1, 2, 3]]),
    "I25 1 x 1": (png(1, 1, 2, b"\0\1\2\3"), [[1, 2, 3]]),
    "BMP": (saved(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP"), [[1, 2, 3]]),
    "half clear": (png(1, 1, 6, b"\0" + bytes([0, 0, 0, 128])), [[127] * 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_all_depths_and_modes_give_their_colours(name: str) -> None:
    data, expected = GOOD[name]
    assert pixels(data) == [expected]


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 400), (400, 3)])
def test_thin_pictures(height: int, width: int) -> None:
    """I26"""
    array = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(np.asarray(open_picture(array)), array)


def test_cmyk_jpeg_is_not_inverted() -> None:
    """I21: no ink is white, all black ink is black. Pillow writes Adobe's marker and Adobe's inverted values."""
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, 16:, 3] = 255
    found = np.asarray(open_picture(saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)))
    assert found[8, 4].min() > 250
    assert found[8, 28].max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation: int, form: str) -> None:
    """I22: the corners of an upright 2 x 3 block picture, stored as each note says."""
    upright = np.kron(np.array([[10, 60, 110], [160, 210, 250]], np.uint8), np.ones((16, 16), np.uint8))
    store = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T,
             6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store[orientation](upright))).convert("RGB")
    data = saved(stored, form, exif=exif, **({"quality": 100} if form != "PNG" else {}))
    picture = look(data)
    assert (picture.height, picture.width) == (32, 48)
    found = np.asarray(picture.decode())[8::16, 8::16, 0].astype(int)
    assert abs(found - upright[8::16, 8::16]).max() <= 3


def test_broken_exif_is_ignored() -> None:
    """I23"""
    note = b"Exif\0\0MM\0*\xff\xff\xff\xf0rubbish"
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + JPEG[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_picture(data).tobytes() == open_picture(JPEG).tobytes()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animated_pictures_give_their_first_frame_and_a_warning(form: str) -> None:
    """I28"""
    frames = [Image.new("RGB", (20, 10), (level, 0, 0)) for level in (200, 100, 50, 0)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    with pytest.warns(UserWarning, match="3 are dropped"):
        assert pixels(data)[0][0] == [200, 0, 0]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """I30"""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for bad in (tmp_path / "pipe.png", tmp_path, "/dev/zero"):
        with pytest.raises(MediaFormatError, match="regular file"):
            open_picture(bad)
    for missing in (tmp_path / "link.png", tmp_path / "none.png"):
        with pytest.raises(MediaError, match="no such file") as caught:
            open_picture(missing)
        assert caught.value.exit == 2
        assert str(tmp_path) not in caught.value.public
    with pytest.raises(MediaError):
        open_picture("nul\0.png")


def test_identity_is_of_size_pixels_and_options() -> None:
    """I31, I32"""
    wide, tall = np.zeros((2, 8, 3), np.uint8), np.zeros((8, 2, 3), np.uint8)
    assert picture_id(open_picture(wide)) != picture_id(open_picture(tall))
    red = png(1, 1, 3, b"\0\0", extra=PALETTE)
    green = png(1, 1, 3, b"\0\0", extra=chunk(b"PLTE", bytes([0, 255, 0, 255, 0, 0])))
    assert picture_id(open_picture(red)) != picture_id(open_picture(green))
    assert picture_id(open_picture(PNG)) == picture_id(open_picture(WEBP))  # equal pixels, whatever the file
    assert picture_id(NOISE, "square") != picture_id(NOISE, "anyres")


def test_the_name_of_a_file_means_nothing(tmp_path: Path) -> None:
    """I33"""
    path = tmp_path / "photo.jpg"
    path.write_bytes(PNG)
    assert open_picture(path).tobytes() == open_picture(str(path)).tobytes() == NOISE.tobytes()


def test_forty_megapixels() -> None:
    """I34"""
    assert look(png(8000, 5000, 0)).width == 8000
    assert open_picture(png(8000, 5000, 0)).size == (8000, 5000)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
    ids=str,
)
def test_arrays_are_not_guessed_about(array: np.ndarray) -> None:
    with pytest.raises(MediaFormatError):
        open_picture(array)


def test_pictures_in_memory_take_every_mode() -> None:
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "I;16"):
        assert open_picture(Image.new(mode, (4, 3))).mode == "RGB"
    with pytest.raises(MediaFormatError):
        open_picture(Image.new("F", (4, 3)))
    with pytest.raises(MediaFormatError):
        open_picture(42)


def test_limits_are_the_callers() -> None:
    with Limits(image_max_pixels=63 * 48), pytest.raises(MediaLimitError, match=r"48 x 64 .* image\.max_pixels"):
        open_picture(PNG)
    assert base64.b64encode(PNG)  # and outside the block it is read again
    assert open_picture(PNG).size == (64, 48)


def test_black_and_interlaced_pictures_are_whole() -> None:
    """Missing rows would be black: a picture that is black at the bottom is counted, and a whole one passes."""
    assert pixels(png(3, 2, 2)) == [[[0, 0, 0]] * 3] * 2
    laced = np.random.default_rng(3).integers(0, 256, (13, 11, 3), np.uint8)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for top, left, down, right in passes for row in laced[top::down, left::right]]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 11, 13, 8, 2, 0, 0, 1))
    for kept in (rows, rows[:-2]):
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"".join(kept))) + chunk(b"IEND", b"")
        if kept is rows:
            assert np.array_equal(np.asarray(open_picture(data)), laced)
        else:
            with pytest.raises(MediaDecodeError):
                open_picture(data)


def test_an_error_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "words.png"
    file.write_bytes(b"these are words")
    with pytest.raises(MediaFormatError) as caught:
        open_picture(file)
    assert caught.value.where == str(file)
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    picture = look(tmp_path / "cut.jpg")  # its header is whole
    with pytest.raises(MediaDecodeError) as caught_later:
        picture.decode()
    assert caught_later.value.where == str(tmp_path / "cut.jpg")


def test_a_text_of_base64_is_no_path() -> None:
    with pytest.raises(MediaError, match="key base64") as caught:
        open_picture("iVBORw0KGgo" * 1000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("turn", [1, 6])
def test_a_photograph_lies_in_one_piece(turn: int) -> None:
    """Over 16 MB Pillow scatters its rows; those of an upright photograph can be read in place nevertheless."""
    draw = np.random.default_rng(3).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photo = Image.fromarray(draw).resize((2400, 2000), Image.Resampling.NEAREST)
    notes = Image.Exif()
    notes[0x0112] = turn
    data = saved(photo, "JPEG", exif=notes)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    expected = expected.transpose(Image.Transpose.ROTATE_270) if turn == 6 else expected
    found = open_picture(data)
    assert found.tobytes() == expected.tobytes()
    if turn == 1:
        assert found.__arrow_c_array__()
