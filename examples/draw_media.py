"""Draw the pictures and the clip that `make demo` asks about, with plain Pillow and PyAV.

    python examples/draw_media.py examples/media

Nothing here is shared with the code that drew the training scenes: it is the same world by another hand.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

ASKED = [  # media, question, answer
    (["shapes.png"], "What color is the star?", "yellow"),
    (["shapes.png"], "What shape is the red object?", "circle"),
    (["shapes.png"], "Is the red circle left of the blue square?", "yes"),
    (["five.jpg"], "How many objects are there?", "5"),
    (["five.jpg"], "Is there a green circle?", "no"),
    (["sizes.png"], "Which object is the largest?", "purple triangle"),
    (["corner.png"], "Where is the cross?", "bottom left"),
    (["word.png"], "What word is written?", "tree"),
    (["small.png"], "What is the small number?", "47"),
    (["first.png", "second.png"], "Which picture has more objects?", "second"),
    (["first.png", "second.png"], "In which picture is the star?", "first"),
    (["move.mp4"], "What moves?", "orange circle"),
    (["move.mp4"], "Which way does the circle move?", "right"),
]


def star(x: float, y: float, far: float) -> list[tuple[float, float]]:
    """Ten corners around a centre."""
    corners = []
    for i in range(10):
        length = far if i % 2 == 0 else far * 0.42
        corners.append((x + length * math.sin(i * math.pi / 5), y - length * math.cos(i * math.pi / 5)))
    return corners


def plus(draw: ImageDraw.ImageDraw, x: float, y: float, far: float, colour: str) -> None:
    third = far / 3
    draw.rectangle((x - far, y - third, x + far, y + third), colour)
    draw.rectangle((x - third, y - far, x + third, y + far), colour)


def page(width: int, height: int, ground: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), ground)
    return picture, ImageDraw.Draw(picture)


def shapes() -> Image.Image:
    picture, draw = page(220, 200, "white")
    draw.ellipse((22, 60, 82, 120), "red")
    draw.rectangle((136, 44, 192, 100), "blue")
    draw.polygon(star(112, 154, 36), "gold", "black")
    return picture


def five() -> Image.Image:
    picture, draw = page(240, 240, "#e8e4da")
    draw.ellipse((24, 30, 78, 84), "#2050d0")
    draw.rectangle((150, 26, 198, 74), "green")
    draw.polygon([(60, 130), (30, 186), (90, 186)], "#e02828")
    plus(draw, 126, 120, 27, "purple")
    draw.ellipse((160, 150, 214, 204), "orange")
    return picture


def sizes() -> Image.Image:
    picture, draw = page(144, 128, "#202428")
    draw.polygon([(52, 14), (10, 92), (94, 92)], "#9a4fd0")
    draw.rectangle((106, 84, 130, 108), "#f0d020")
    draw.ellipse((104, 22, 130, 48), "#30a050")
    return picture


def corner() -> Image.Image:
    picture, draw = page(150, 150, "#f4f6ff")
    plus(draw, 34, 114, 24, "#f08018")
    draw.ellipse((90, 20, 130, 60), "#2868e0")
    return picture


def word() -> Image.Image:
    picture, draw = page(180, 140, "#d8ecd8")
    draw.text((90, 66), "tree", "black", ImageFont.load_default(68), anchor="mm")
    return picture


def small() -> Image.Image:
    """Digits 22 pixels high of 256: 5 or 6 in the whole-picture tile, 11 in the tiles."""
    picture, draw = page(256, 256, "white")
    draw.ellipse((30, 120, 130, 220), "green")
    draw.text((176, 74), "47", "black", ImageFont.load_default(31), anchor="mm")
    return picture


def first() -> Image.Image:
    picture, draw = page(128, 128, "white")
    draw.polygon(star(62, 66, 38), "red")
    return picture


def second() -> Image.Image:
    picture, draw = page(128, 128, "#f0e8ff")
    draw.ellipse((14, 18, 52, 56), "blue")
    draw.rectangle((74, 22, 110, 58), "orange")
    draw.polygon([(62, 72), (38, 114), (86, 114)], "green")
    return picture


def move(path: Path, seconds: int = 2, fps: int = 16) -> None:
    """An orange circle crosses below a blue square."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", fps, options={"crf": "18"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for i in range(seconds * fps):
            picture, draw = page(128, 128, "#f2f2ee")
            draw.rectangle((76, 14, 108, 46), "#2050d0")
            x = 24 + 80 * i / (seconds * fps - 1)
            draw.ellipse((x - 17, 71, x + 17, 105), "#ff8c10")
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode(None))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (shapes, sizes, corner, word, small, first, second):
        draw().save(folder / f"{draw.__name__}.png", optimize=True)
    five().save(folder / "five.jpg", quality=85)
    move(folder / "move.mp4")
    asked = [{"media": media, "question": question, "answer": answer} for media, question, answer in ASKED]
    (folder / "questions.json").write_text(json.dumps(asked, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
