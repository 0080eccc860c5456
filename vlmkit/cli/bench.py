"""vlmkit bench"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import arguments as a
from . import console
from .doctor import halves
from .generate import load, question

if TYPE_CHECKING:
    from vlmkit.view.speed import Speed


def bench(
    source: a.Source,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="key=value")] = None,
    image: a.Images = None,
    video: a.Videos = None,
    ask: Annotated[str, typer.Option(help="The question.")] = "What is in the picture?",
    new_tokens: Annotated[int, typer.Option("--new-tokens", "-n", min=2, help="Tokens of the answer.")] = 32,
    turns: Annotated[int, typer.Option(min=1, help="How often each stage runs; medians are told.")] = 3,
    device: a.Device = "auto",
    dtype: a.Dtype = None,
    attention: a.Attention = "auto",
    quantize: a.Quantize = None,
    json: a.Json = False,
) -> None:
    """How fast a model answers here, and what would help."""
    model, processor = load(source, words or [], device, dtype, attention, quantize)
    from vlmkit.view.speed import measure

    asked = question(ask, image or [], video or [])
    if not image and not video and model.image is not None:
        asked["content"].insert(0, {"type": "image", "image": _drawn()})
    with console.progress("answering"):
        speed = measure(model, processor, [asked], new_tokens, turns)
    help = advice(speed, model)
    if json:
        return console.document({**speed._asdict(), "advice": help})
    whole = speed.first + speed.stages["decode"]
    console.columns([(name, f"{1000 * s:.1f} ms", f"{s / whole:.0%}") for name, s in speed.stages.items()],
                    ("stage", "", ""), right=(1, 2))  # fmt: skip
    print(f"\nfirst token after {1000 * speed.first:.0f} ms: {speed.prompt:,} tokens, {speed.visual:,} of them visual")
    print(f"then {speed.rate:.1f} tokens a second, {1 / speed.rate / speed.floor:.2f} times what reading "
          f"weights and cache takes at {console.amount(speed.read)}/s")
    print(f"weights {console.amount(speed.weights)}, peak memory {console.amount(speed.peak)}")
    for line in help:
        print(f"- {line}")


def advice(speed: Speed, model: Any) -> list[str]:
    """What would help, measured on this machine where that is quick."""
    import torch

    weight = next(model.decoder.parameters())
    found = []
    if weight.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if torch.get_num_threads() < cores:
            found.append(f"{torch.get_num_threads()} of {cores} cores are used: OMP_NUM_THREADS={cores} takes all")
        if weight.dtype == torch.float32:
            found += [f"--dtype {name} is {x['matrix']:.1f} times as fast in prompts here, {x['vector']:.1f} times in "
                      "single tokens; `vlmkit quality` tells what it changes"
                      for name, x in halves().items() if min(x.values()) > 1.2]
    elif weight.dtype == torch.float32:
        found.append("--dtype bfloat16 reads half as many bytes; `vlmkit quality` tells what it changes")
    pictures, vision = (speed.stages[name] for name in ("pictures", "vision"))
    if vision > 0.2 * speed.first:
        found.append(f"a second question about the same picture saves {1000 * vision:.0f} of {1000 * speed.first:.0f} "
                     "ms where features are kept: vlmkit.generate(..., features=FeatureCache()), or `vlmkit chat`")
    if pictures > 0.2 * speed.first:
        found.append(f"pictures take {pictures / speed.first:.0%} of the first token: image.tiler.resample=torch is "
                     "faster, within two levels; smaller files decode faster")
    if 1 / speed.rate < 1.3 * speed.floor:
        found.append("decoding is at what memory gives: only fewer bytes help, such as --quantize int8")
    return found


def _drawn() -> Any:
    """A picture of 480 x 640, when none is given."""
    from PIL import Image

    return Image.linear_gradient("L").resize((640, 480)).convert("RGB")
