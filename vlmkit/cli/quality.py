"""vlmkit quality"""

from __future__ import annotations

import json as notation
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmkit.errors import PromptError

from . import arguments as a
from . import console
from .generate import load


def quality(
    source: a.Source,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="key=value")] = None,
    quantize: a.Quantize = None,
    dtype: a.Dtype = None,
    against: Annotated[str | None, typer.Option(help="The dtype that is right; if not given, as stored.")] = None,
    conversations: Annotated[
        Path | None, typer.Option(help="JSON Lines: each a list of messages. If not given, a drawn picture and words.")
    ] = None,
    tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="The longest answer, in tokens.")] = 32,
    device: a.Device = "auto",
    json: a.Json = False,
) -> None:
    """What few bits or a half type change in a model's answers."""
    if quantize is None and dtype is None:
        raise typer.BadParameter("nothing to compare: give --quantize, --dtype, or both")
    from vlmkit.generate.quality import drift, say

    from .compare import questions

    model, processor = load(source, words or [], device, against, "auto")
    words_only = [{"role": "user", "content": "Name three colours."}]
    asked = _read(conversations) if conversations else {**questions(model), "words": words_only}
    asked.pop("clip", None)  # a drawn clip has fewer frames than models sample
    with console.progress("answering with whole weights"):
        whole = say(model, processor, list(asked.values()), tokens)
    del model  # one at a time in memory
    model, processor = load(source, words or [], device, dtype or against, "auto", quantize)
    with console.progress("answering again"):
        other = say(model, processor, list(asked.values()), tokens, whole)
    found = {name: drift(one, two) for name, one, two in zip(asked, whole, other, strict=True)}
    if json:
        return console.document({name: one._asdict() for name, one in found.items()})
    heads = ("", "largest difference of a logit", "divergence", "same choice", "same answer")
    console.columns([(name, f"{d.logits:.3g}", f"{d.divergence:.2g} nats", f"{d.chosen:.1%}",
                      f"{d.same} of {d.tokens} tokens") for name, d in found.items()], heads)  # fmt: skip
    total = sum(d.tokens for d in found.values())
    alike = sum(d.chosen * d.tokens for d in found.values()) / total
    print(f"\n{alike:.1%} of {total:,} tokens are chosen alike")


def _read(file: Path) -> dict[str, Any]:
    """Conversations by line number."""
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found[f"line {number}"] = notation.loads(line)
            except (ValueError, RecursionError) as error:
                raise PromptError(f"no JSON: {error}", where=f"{file}, line {number}") from None
    if not found:
        raise PromptError("holds no conversation", where=file, hint="each line is a list of messages, as JSON")
    return found
