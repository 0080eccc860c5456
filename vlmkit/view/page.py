"""Panels and tables as one file: a page that needs nothing else, or one tall picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from ..errors import VlmkitError
from .drawing import FAINT, INK, LINE, MARGIN, PAPER, font
from .tiles import WIDTH

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #20242c; background: #fff; max-width: 1080px;
  margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p { margin: .2rem 0; color: #5b616e }
img { width: 100%; border: 1px solid #e3e6ec; border-radius: 8px }
table { border-collapse: collapse; font-size: .92rem }
td { padding: .22rem 1.4rem .22rem 0; border-top: 1px solid #e3e6ec }
td:nth-child(3) { font-family: ui-monospace, monospace } td:first-child { font-weight: 600 }
"""


class Panel(NamedTuple):
    """One step of the story: a heading, a sentence, and a picture or the rows of a table."""

    heading: str
    words: str
    shown: Image.Image | Sequence[Sequence[str]]


def write(path: Path, title: str, words: str, panels: Sequence[Panel]) -> None:
    """As HTML or PNG, by the ending of the name; the file appears whole or not at all."""
    makers = {".html": as_html, ".png": as_png}
    if path.suffix.lower() not in makers:
        raise VlmkitError(f"writes .html or .png, not {path.suffix or 'a name without ending'!r}", where=path)
    part = path.with_name(path.name + ".part")
    part.write_bytes(makers[path.suffix.lower()](title, words, panels))
    part.replace(path)


def as_html(title: str, words: str, panels: Sequence[Panel]) -> bytes:
    e = html.escape
    body = "".join(f"<h2>{e(p.heading)}</h2>\n<p>{e(p.words)}</p>\n{_figure(p)}\n" for p in panels)
    return (f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{e(title)}</title>\n'
            f"<style>{STYLE}</style>\n<h1>{e(title)}</h1>\n<p>{e(words)}</p>\n{body}</html>\n").encode()


def _figure(panel: Panel) -> str:
    if isinstance(panel.shown, Image.Image):
        data = base64.b64encode(_png(panel.shown)).decode()
        return f'<img alt="{html.escape(panel.heading)}" src="data:image/png;base64,{data}">'
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in panel.shown)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def as_png(title: str, words: str, panels: Sequence[Panel]) -> bytes:
    """Everything under each other."""
    pieces = [_heading(title, words, 34)]
    for panel in panels:
        pieces.append(_heading(panel.heading, panel.words, 24))
        pieces.append(panel.shown if isinstance(panel.shown, Image.Image) else _table(panel.shown))
    sheet = Image.new("RGB", (WIDTH, sum(p.height for p in pieces) + MARGIN), PAPER)
    y = 0
    for piece in pieces:
        sheet.paste(piece, (0, y))
        y += piece.height
    return _png(sheet)


def _heading(text: str, words: str, size: int) -> Image.Image:
    made = Image.new("RGB", (WIDTH, round(size * 1.4) + 62), PAPER)
    pen = ImageDraw.Draw(made)
    pen.text((MARGIN, 22), text, font=font(size), fill=INK)
    pen.text((MARGIN, 26 + size * 1.35), words, font=font(17), fill=FAINT)
    return made


def _table(rows: Sequence[Sequence[str]]) -> Image.Image:
    made = Image.new("RGB", (WIDTH, 34 * len(rows) + 16), PAPER)
    pen = ImageDraw.Draw(made)
    widths = [max(pen.textlength(row[i], font=font(17)) for row in rows) + 40 for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        y = 6 + 34 * number
        pen.line((MARGIN, y, MARGIN + sum(widths), y), fill=LINE)
        for i, cell in enumerate(row):
            pen.text((MARGIN + sum(widths[:i]), y + 7), cell, font=font(17), fill=INK)
    return made


def _png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    return held.getvalue()
