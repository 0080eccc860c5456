"""vlmkit train PRESET [WORDS] --out DIR"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vlmkit
from vlmkit.compose.preset import Run
from vlmkit.errors import PresetError, ResumeError

from . import arguments as a
from . import console

if TYPE_CHECKING:
    from vlmkit.train.log import Done

EVERY = 10  # seconds between two plain lines


def train(
    words: a.Words,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for the model, the log and what --resume needs.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the training in this folder stopped.")] = False,
    labels: Annotated[
        int, typer.Option(min=0, help="Train nothing; print so many conversations and which words are learned.")
    ] = 0,
    processes: Annotated[
        int, typer.Option(min=1, help="How many to start here, by torchrun; `machine.shard` says what they share.")
    ] = 1,
) -> None:
    """Train a model as a run describes.

    It begins with its preset's weights, or from nothing, and is saved in the folder
    `model` inside DIR.
    """
    run = vlmkit.compose(*words)
    if not isinstance(run, Run):
        raise PresetError("says nothing about training", where=f"preset {run.name}",
                          hint=f"add a run: vlmkit train {run.name} runs/tiny --out DIR")
    if run.tokenizer is None:
        raise PresetError("names no tokenizer", where=f"preset {run.name}", hint="give it a section `tokenizer`")
    if labels:
        return _show(run, labels)
    if out is None:
        raise typer.BadParameter("name a folder: --out DIR")
    if processes > 1:
        again = [*words, "--out", str(out), *["--resume"] * resume]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        os.execv(sys.executable, [sys.executable, *torchrun, "-m", "vlmkit", "train", *again])
    first = os.environ.get("RANK", "0") == "0"
    with console.progress("building") if first else nullcontext():
        from vlmkit.train import loop
        from vlmkit.train.begin import begin, record
        from vlmkit.train.parallel import leaving

        if not resume and (out / loop.STATE).exists():
            raise ResumeError("a training is here already", where=out, hint="add --resume, or name another folder")
        if first:
            record(run, out / "run.yaml", resume)
        model, processor = begin(run)
    try:
        with _told(sum(stage.steps or run.steps for stage in run.stages) or run.steps) as (told, said), leaving():
            model = loop.train(model, processor, run, out, resume, told, said)
    except KeyboardInterrupt:
        if (out / loop.STATE).exists():
            console.warn(f"saves are in {out}; the same command with --resume goes on from the last one")
        raise
    if first:
        print(vlmkit.save(model, processor, out / "model"))


def _show(run: Run, count: int) -> None:
    """Conversations of each stage as the model reads them; what is learned is green, or between [[ and ]]."""
    from vlmkit.model.assemble import assemble
    from vlmkit.processing.processor import Processor
    from vlmkit.processing.tokenizer import Tokenizer
    from vlmkit.train import audit, stages

    assert run.tokenizer is not None
    processor = Processor(run, assemble(run), Tokenizer.from_file(run.tokenizer.from_))
    for name, stage in stages.stages(run).items():
        data = stage.data.build()
        for at in range(min(count, len(data))):
            console.title(f"{name} conversation {at}".strip())
            pieces = audit.labels(processor, data[at])
            print("".join(console.marked(text) if learned else text for text, learned in pieces) + "\n")


class Pace:
    """How a training goes: the loss of its last steps, tokens in a second, how many of them are seen, time left."""

    def __init__(self, steps: int) -> None:
        self.steps, self.count, self.tokens, self.visual = steps, 0, 0, 0
        self.begun = time.perf_counter()
        self.losses: deque[float] = deque(maxlen=20)

    def tell(self, done: Done) -> str:
        self.count += 1
        self.tokens += done.tokens
        self.visual += done.visual
        self.losses.append(done.loss)
        spent = time.perf_counter() - self.begun
        left = timedelta(seconds=round(spent / self.count * (self.steps - done.step - 1)))
        return (f"{done.stage}  " if done.stage else "") + (
            f"loss {sum(self.losses) / len(self.losses):.3f}  {self.tokens / spent:,.0f} tokens/s  "
            f"{self.visual / self.tokens:.0%} visual  {left} left")


@contextmanager
def _told(steps: int) -> Iterator[tuple[Callable[[Done], None], Callable[[str], None]]]:
    """What hears of each step, and what hears of all else: a bar on a terminal, else a line now and then."""
    pace = Pace(steps)
    if not console.lively(sys.stderr):
        said = float("-inf")

        def line(done: Done) -> None:
            nonlocal said
            text, now = pace.tell(done), time.perf_counter()
            if now - said > EVERY or done.step + 1 == steps:
                print(f"step {done.step + 1} of {steps}  {text}", file=sys.stderr, flush=True)
                said = now

        yield line, console.warn
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps)
        yield (lambda done: bar.update(task, completed=done.step + 1, description=pace.tell(done))), console.warn
