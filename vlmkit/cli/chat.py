"""vlmkit chat SOURCE"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.errors import VlmkitError

from . import arguments as a
from . import console
from .generate import load, media

if TYPE_CHECKING:
    from vlmkit.generate import Engine, Options

HELP = "/image FILE and /video FILE show something with the next question, /new starts anew, /quit ends"


def chat(
    source: a.Source,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Presets or key=value.")] = None,
    image: a.Images = None,
    video: a.Videos = None,
    max_new_tokens: a.NewTokens = 512,
    temperature: a.Temperature = 0.0,
    top_p: a.TopP = 1.0,
    seed: a.Seed = None,
    device: a.Device = "auto",
    dtype: a.Dtype = None,
    attention: a.Attention = "auto",
    quantize: a.Quantize = None,
) -> None:
    """Talk about pictures and clips, turn by turn."""
    model, processor = load(source, words or [], device, dtype, attention, quantize)
    from vlmkit.generate import Engine, Options

    options = Options.of({"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed})
    engine = Engine(model, processor, rows=1)  # its row holds what was said so far
    turns: list[dict[str, Any]] = []
    shown = media(image or [], video or [])
    print(HELP, file=sys.stderr)
    while (line := _ask()) is not None and line not in ("/quit", "/exit"):
        command, _, rest = line.partition(" ")
        if command in ("/image", "/video") and rest:
            file = [Path(os.path.expanduser(rest.strip()))]
            shown += media(file, []) if command == "/image" else media([], file)
        elif command == "/new":
            turns, shown = [], []
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            asked = {"role": "user", "content": [*shown, {"type": "text", "text": line}]}
            answer, shown = _answer(engine, [*turns, asked], options), []
            if answer is not None:
                turns += [asked, {"role": "assistant", "content": answer}]


def _ask() -> str | None:
    """The next line, None at the end."""
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(engine: Engine, turns: list[dict[str, Any]], options: Options) -> str | None:
    """Print an answer as it comes: None when the turn failed, what there was when it was interrupted."""
    said: list[str] = []
    try:
        for piece in engine.pieces(engine.submit(turns, options)):
            said.append(piece)
            print(piece, end="", flush=True)
    except VlmkitError as error:
        console.warn(f"error: {error}")
        return None
    except KeyboardInterrupt:
        pass
    print()
    return "".join(said)
