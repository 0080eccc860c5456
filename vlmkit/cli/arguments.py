"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str], typer.Argument(metavar="PRESET [WORDS]...", help="A preset, then further presets or key=value.")
]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A preset, or a checkpoint folder that vlmkit wrote.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
Images = Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; may be repeated.")]
Videos = Annotated[list[Path] | None, typer.Option("--video", "-v", help="A clip; may be repeated.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes a GPU when there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; if not given, as stored.")]
Attention = Annotated[str, typer.Option(help="The attention backend; `vlmkit parts attention` lists them.")]
Quantize = Annotated[str | None, typer.Option(help="Keep the decoder's matrices in few bits: int8, or nf4.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="The longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; more is more varied.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens that sum to this.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many of the likeliest tokens; 0 is all.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", min=0.01, help="Above 1: less of what was said.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
