"""vlmkit generate SOURCE [WORDS] PROMPT"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmkit

from . import arguments as a
from . import console

if TYPE_CHECKING:
    from vlmkit.model.vlm import VLM


def generate(
    source: a.Source,
    words: Annotated[
        list[str],
        typer.Argument(metavar="[WORDS]... PROMPT", help="key=value, then the question; - is standard input."),
    ],
    image: a.Images = None,
    video: a.Videos = None,
    max_new_tokens: a.NewTokens = 256,
    temperature: a.Temperature = 0.0,
    top_p: a.TopP = 1.0,
    top_k: a.TopK = 0,
    repetition_penalty: a.Penalty = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    seed: a.Seed = None,
    device: a.Device = "auto",
    dtype: a.Dtype = None,
    attention: a.Attention = "auto",
    quantize: a.Quantize = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    json: a.Json = False,
) -> None:
    """Answer a question about pictures and clips."""
    if stream and json:
        raise typer.BadParameter("--stream prints pieces as they come, --json one document at the end: choose one")
    *words, prompt = words
    prompt = sys.stdin.read() if prompt == "-" else prompt
    asked = [question(prompt, image or [], video or [])]
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k,
        "repetition_penalty": repetition_penalty, "stop": tuple(stop or ()), "seed": seed,
    }  # fmt: skip
    model, processor = load(source, words, device, dtype, attention, quantize)
    if stream:
        for piece in vlmkit.stream(model, processor, asked, **how):
            print(piece, end="", flush=True)
        return print()
    with console.progress("answering"):
        answer = vlmkit.generate(model, processor, asked, details=True, **how)
    if json:
        cost = {"prompt_tokens": answer.prompt_tokens, "visual_tokens": answer.visual_tokens}
        return console.document({"text": answer.text, "finish": answer.finish, "tokens": len(answer.ids), **cost})
    print(answer.text)


def question(prompt: str, images: list[Path], videos: list[Path]) -> dict[str, Any]:
    """One message: pictures, then clips, then the words."""
    return {"role": "user", "content": [*media(images, videos), {"type": "text", "text": prompt}]}


def media(images: list[Path], videos: list[Path]) -> list[dict[str, str]]:
    """The content parts of pictures, then of clips."""
    named = [("image", path) for path in images] + [("video", path) for path in videos]
    return [{"type": kind, kind: str(path)} for kind, path in named]


def load(source: str, words: list[str], device: str, dtype: str | None, attention: str,
         quantize: str | None = None) -> tuple[VLM, Any]:
    """A model and its processor; what this machine cannot do is told before anything is read."""
    with console.progress(f"loading {source}"):
        import torch

        names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype is not None and dtype not in names:
            raise typer.BadParameter(f"no dtype named {dtype!r}; there are: {', '.join(names)}")
        backends = vlmkit.registry.names("attention")
        if attention not in backends:
            raise typer.BadParameter(f"no attention named {attention!r}; there are: {', '.join(backends)}")
        kind = names[dtype] if dtype else None
        return vlmkit.load(source, *words, device=_device(device), dtype=kind, attention=attention, quantize=quantize)


def _device(name: str) -> str:
    """A device that works here; `auto` is a GPU when there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such name or number, no driver; torch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise typer.BadParameter(f"device {name!r} cannot be used here: {why}; `vlmkit doctor` lists them") from None
    return name
