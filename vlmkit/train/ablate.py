"""A study: its cells are rehearsed together, trained each in a process of its own, measured and laid side by side."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint import native
from ..checkpoint.paper import paper
from ..checkpoint.whole import writing
from ..compose.bind import compose
from ..compose.cells import Cell, cells, run_of
from ..compose.preset import Run
from ..compose.study import Study
from ..errors import PresetError, ResumeError, VlmkitError
from ..model.assemble import assemble
from ..model.memory import peak
from ..model.rehearse import rehearse
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from . import loop, state
from .begin import begin, record
from .evaluate import evaluate, line
from .exam import exam
from .log import LOG
from .stages import chosen, stages

if TYPE_CHECKING:
    from ..model.vlm import VLM

STUDY, RUN, RESULT, OUTPUT = "study.yaml", "run.yaml", "result.json", "output.txt"
GLANCE = 32  # questions that tokens and operations are counted on, of each set


class Job(NamedTuple):
    """A cell with a seed, and its folder."""

    cell: Cell
    seed: int
    run: Run
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"


def ablate(study: Study, out: Path, resume: bool = False, told: Callable[[str], None] = lambda line: None
           ) -> list[dict[str, Any]]:
    """Train and measure every cell of a study.   -> the lines of `out/results.jsonl`

    All cells are rehearsed before the first starts. One that breaks later is told, and the others go on. With `resume`,
    finished cells are kept and an unfinished one goes on from its last save.
    """
    jobs = [Job(cell, seed, run_of(study, cell, seed), out / cell.folder / f"seed-{seed}")
            for cell in rehearsed(study) for seed in study.seeds]
    if not resume and (out / STUDY).exists():
        raise ResumeError("a study is here already", where=out, hint="add --resume, or name another folder")
    record(study, out / STUDY)
    for job in jobs:
        record(job.run, job.folder / RUN)
    waiting = [job for job in jobs if not (job.folder / RESULT).is_file()]
    if kept := len(jobs) - len(waiting):
        told(f"{kept} of {len(jobs)} runs are finished already")
    for count, (job, status) in enumerate(_run(waiting, study.jobs, out / STUDY, told), start=kept + 1):
        how = f"broke, see {job.folder / OUTPUT}" if status else "is done"
        told(f"{count} of {len(jobs)}: {job.name} {how}")
    return collect(jobs, out)


def collect(jobs: list[Job], out: Path) -> list[dict[str, Any]]:
    """What the cells' folders hold, as one list; a broken cell has an `error`."""
    found = []
    for job in jobs:
        said = {"cell": job.cell.name, "seed": job.seed, "folder": str(job.folder.relative_to(out))}
        if (file := job.folder / RESULT).is_file():
            found.append(said | json.loads(file.read_text(encoding="utf-8")))
        else:
            last = (job.folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            found.append(said | {"error": (last or ["ended without a word"])[0]})
    with writing(out / "results.jsonl") as file_:
        file_.writelines(map(line, found))
    return found


def rehearsed(study: Study) -> list[Cell]:
    """The cells of a study, every one tried on paper: it composes, fits together, its weights and its data fit it.

    Raises PresetError with the problems of all cells.
    """
    found, problems = cells(study), []
    for cell in found:
        try:
            run = run_of(study, cell, study.seeds[0])
            _try(study, run)
        except VlmkitError as error:
            problems.append(f"cell {cell.name}: {error}".replace(f"cell {cell.name}: cell {cell.name}: ",
                                                                 f"cell {cell.name}: "))
    if problems:
        raise PresetError("\n".join([f"{len(problems)} of {len(found)} cells do not fit; nothing was started",
                                     *problems]), where=f"study {study.name}")
    return found


def _try(study: Study, run: Run) -> None:
    """The first sample of all data goes through the cell's own processor, and what is to learn is there."""
    skeleton = paper(run).skeleton if run.weights else assemble(run)
    rehearse(skeleton, run.name)
    if run.tokenizer is None:
        raise PresetError("names no tokenizer", hint="give it a section `tokenizer`")
    processor = Processor(run, skeleton, Tokenizer.from_file(run.tokenizer.from_))
    for stage in stages(run).values():
        chosen(skeleton, stage.train)
    for data in (run.data, *(measure.data for measure in study.measure)):
        processor(data.build()[0], reply=False, labels=True)


def _run(jobs: list[Job], beside: int, study: Path, told: Callable[[str], None]) -> Iterator[tuple[Job, int]]:
    """Each job in a process forked from a small one that has imported what they need; `beside` at a time."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    left, busy = list(reversed(jobs)), dict[Any, tuple[Job, Any]]()
    try:
        while left or busy:
            while left and len(busy) < beside:
                job = left.pop()
                process = context.Process(target=train_cell, args=(job.folder, study, beside), name=job.name)
                process.start()
                busy[process.sentinel] = job, process
                told(f"{job.name} ...")
            for sentinel in wait(list(busy)):
                job, process = busy.pop(sentinel)
                process.join()
                yield job, process.exitcode or 0
    finally:
        for _, process in busy.values():
            process.terminate()
        for _, process in busy.values():
            process.join()


def train_cell(folder: Path, study: Path, beside: int) -> None:
    """Train and measure one cell, told by its own files only; runs in a process of its own."""
    with (folder / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if beside > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // beside))
    run, asked = compose(folder / RUN), compose(study)
    assert isinstance(run, Run)
    assert isinstance(asked, Study)
    try:
        model, processor = begin(run)
        report = rehearse(processor.skeleton, run.name)
        resume, shared = bool(state.saves(folder)), study.parent / "features"
        model = loop.train(model, processor, run, folder, resume, _watched, print, shared)
        native.save(model, processor, folder / "model")
        found = measured(model, processor, asked, folder)
    except VlmkitError as error:
        print(error)
        raise SystemExit(f"{error.where}: {error.what}".removeprefix(": ")) from None
    with writing(folder / RESULT) as file:
        held = peak(next(model.parameters()).device)
        file.write(line({**found, **costs(folder), "parameters": report.total, "memory": held}))


def _watched(done: Any) -> None:
    """After each step: a cell whose study is gone stops."""
    if (study := parent_process()) is not None and not study.is_alive():
        raise SystemExit("the study was stopped")


def measured(model: VLM, processor: Processor, study: Study, folder: Path) -> dict[str, Any]:
    """Scores by set, and what a question costs: tokens of what is shown, operations of a forward pass, milliseconds."""
    scores: dict[str, float] = {}
    visual, operations, seconds, asked = 0, 0, 0.0, 0
    model.eval().requires_grad_(False)  # torch counts operations through hooks that expect no parameter alone
    for measure in study.measure:
        data = measure.data.build()
        if measure.metrics:
            metrics = {metric.use: metric.build() for metric in measure.metrics}
            result = evaluate(model, processor, data, metrics, max_new_tokens=measure.max_new_tokens)
            with writing(folder / f"{measure.name}.jsonl") as file:
                file.writelines(line(row._asdict()) for row in result.rows)
            scores |= {f"{measure.name}" if len(metrics) == 1 else f"{measure.name} {name}": score
                       for name, score in result.scores.items()}
        else:
            (right, of), = exam(model, processor, ((measure.name, data[i]) for i in range(len(data)))).values()
            scores[measure.name] = right / of
        batch = processor([data[i] for i in range(min(GLANCE, len(data)))], reply=False)
        batch = batch.to(next(model.parameters()).device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            begun = time.perf_counter()
            model(batch)
            seconds += time.perf_counter() - begun
        asked, visual = asked + len(batch.lens), visual + len(batch.slots)
        operations += counter.get_total_flops()
    return {"scores": scores, "visual": visual / asked, "flops": operations / asked,
            "answer_ms": 1000 * seconds / asked}


def costs(folder: Path) -> dict[str, float]:
    """What the log of a training tells."""
    steps = [json.loads(text) for text in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return {"steps": len(steps), "loss": statistics.fmean(step["loss"] for step in steps[-20:]),
            "tokens": sum(step["tokens"] for step in steps),
            "step_s": statistics.median(step["seconds"] for step in steps)}
