"""vlmkit eval SOURCE [WORDS] --data DATASET"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vlmkit.compose.bind import bind_section
from vlmkit.compose.merge import COMMAND_LINE, set_words
from vlmkit.compose.nodes import Node
from vlmkit.compose.study import Measure

from . import arguments as a
from . import console
from .generate import load

OURS = ("data.", "metrics[")  # words that are about the questions; the others are about the model


def eval_(
    source: a.Source,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="key=value; data.key=value for the dataset.")
    ] = None,
    data: Annotated[str, typer.Option("--data", help="A dataset; `vlmkit parts dataset` lists them.")] = ...,  # type: ignore[assignment]
    metric: Annotated[list[str] | None, typer.Option(help="How answers are judged; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for results and every answer.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions that are answered side by side.")] = 32,
    max_new_tokens: a.NewTokens = 64,
    device: a.Device = "auto",
    dtype: a.Dtype = None,
    attention: a.Attention = "auto",
    quantize: a.Quantize = None,
    json: a.Json = False,
) -> None:
    """Judge answers to questions whose answers are known."""
    about = [word for word in words or [] if word.startswith(OURS)]
    measure = read(data, metric or ["exact"], about)
    questions, metrics = measure.data.build(), {one.use: one.build() for one in measure.metrics}
    model, processor = load(source, [w for w in words or [] if w not in about], device, dtype, attention, quantize)
    from vlmkit.checkpoint.whole import writing
    from vlmkit.train import evaluate as e

    with ExitStack() as stack:
        kept = stack.enter_context(writing(out / "samples.jsonl")) if out else None
        with console.progress(f"answering {len(questions)} questions"):
            result = e.evaluate(model, processor, questions, metrics, batch, max_new_tokens,
                                lambda row: kept and kept.write(e.line(row._asdict())))
    told = e.document(result, data, {"model": source, "batch": batch, **measure.model_dump(
        mode="json", serialize_as_any=True, exclude={"name"})})
    if out:
        with writing(out / "results.json") as file:
            file.write(e.line(told))
    for at, why in list(result.left_out.items())[:10]:
        console.warn(f"sample {at} was left out: {why}")
    if json:
        return console.document(told)
    asked = told["n-samples"][data]
    console.columns([(name, f"{100 * score:.1f} %") for name, score in result.scores.items()], right=(1,))
    print(f"\n{asked['effective']} of {asked['original']} questions were asked")


def read(data: str, metrics: list[str], words: list[str]) -> Measure:
    """What a command says about questions, as a section of a study."""
    parts = [Node({"use": Node(name, "--metric")}, "--metric") for name in metrics]
    tree = Node({"name": Node("eval", COMMAND_LINE), "data": Node({"use": Node(data, "--data")}, "--data"),
                 "metrics": Node(parts, "--metric")}, COMMAND_LINE)
    return bind_section(Measure, set_words(tree, words), "questions")
