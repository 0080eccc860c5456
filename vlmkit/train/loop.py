"""The training loop: draw, pack, step, log, save; a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint.native import save as save_model
from ..checkpoint.whole import only_writer
from ..errors import ResumeError, VlmkitError
from ..model.assemble import assemble
from ..types import Batch
from . import adapters, audit, state
from .audit import Audit
from .data import Feed
from .dpo import Preference, logps, refer
from .features import keeping
from .log import LOG as LOG
from .log import Done, Log
from .loss import loss as cross_entropy
from .parallel import Ranks, Step, clip, filled, parallelize, tally, undo, whole
from .stages import Learner, stages

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..model.vlm import VLM
    from ..processing.processor import Processor

STATE = state.STATE
EXPLODED = 4  # times the loss of a blind guess


def train(model: VLM, processor: Processor, run: Run, out: Path, resume: bool = False,
          told: Callable[[Done], None] = lambda done: None, said: Callable[[str], None] = lambda text: None,
          features: Path | None = None) -> VLM:
    """Train what `run.train` names, for `run.steps` steps; where a run has stages, one after the other.

    told   hears of each step, which `out/log.jsonl` keeps; said hears what a person should know
    features  a folder that trainings share, for what frozen towers saw
    Raises VlmkitError when a loss or a gradient is not finite, before any weight is touched by it.
    """
    ranks = Ranks(run.machine, place(run.machine.device))
    said, every = said if ranks.first else lambda text: None, stages(run)
    ranks.check(every.values())
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out.resolve()) if ranks.first else nullcontext():
        saved = state.newest(out) if resume else None
        here = saved.told["stage"] if saved else next(iter(every))
        if here not in every:
            raise ResumeError(f"was saved in stage {here!r}; this run has {', '.join(every)}", where=out)
        for one in saved.skipped if saved else ():
            said(f"skipped a damaged state: {one}")
        ranks.wait()
        log = Log(out, run, saved.told["step"] if saved else 0) if ranks.first else None
        try:
            begun = 0
            moved = set[str](saved.told["moved"]) if saved else set[str]()
            for name, stage in every.items():
                if saved is None or name == here:
                    work = Work(model, processor, stage, out, name, begun, moved, ranks)
                    work.go(saved, log, told, said, features)
                    model = work.plain()
                    merged = adapters.finish(model, stage, out / "adapters" / name, ranks.first)
                    moved |= merged | work.learner.moved
                    saved = None
                    if name and ranks.first:
                        save_model(model.eval(), processor, out / "stages" / name)
                begun += stage.steps
        finally:
            if log:
                log.close()
    return model.eval()


class Work:
    """One stage under way.   begun: steps of earlier stages; moved: names of weights that learned in them"""

    def __init__(self, model: VLM, processor: Processor, run: Run, out: Path, name: str, begun: int, moved: set[str],
                 ranks: Ranks) -> None:
        self.model, self.processor, self.run, self.out = model, processor, run, out
        self.name, self.begun, self.moved, self.ranks = name, begun, moved, ranks
        adapters.add(model, run)
        self.forward = Step(model)
        if ranks.mesh is None:
            model.to(ranks.device)
        parallelize(model, self.forward, run.machine, ranks.mesh, run.train)
        if run.machine.shard == "tensor":
            model.to(ranks.device)
        self.learner = Learner(model, run, getattr(torch, run.machine.dtype))
        self.frozen = ""
        self.prefer: Preference | None = None

    def go(self, saved: state.Saved | None, log: Log | None, told: Callable[[Done], None],
           said: Callable[[str], None], features: Path | None = None) -> None:
        """From the start, or from a state on."""
        first = 0
        reference = saved.tensors.pop("reference", None) if saved and self.run.prefer else None
        if saved:
            self.learner.load(saved.tensors, self.moved)
            first = saved.told["step"] - self.begun
        self.frozen = _digest(self.learner.frozen())
        if saved and saved.told["frozen"] != self.frozen:
            raise ResumeError("the frozen weights are other ones than those of the run that is resumed", where=self.out)
        feed = Feed(self.run, self.processor, saved.told["feed"] if saved else None, *self.ranks.data, self.out)
        said(feed.about())
        again, folder = feed.again or features is not None, features or self.out / "features"
        keep = partial(keeping, self.model, self.run, folder, again, said)
        if self.run.prefer:
            if saved and reference is None:
                raise ResumeError("was saved by a run without `prefer`: the reference is lost", where=self.out)
            if reference is None:
                said("each pair is read once before the first step: how likely its answers are for the model as it is")
                with keep():
                    reference = self.ranks.least(refer(
                        self.learner, Feed(self.run, self.processor, None, *self.ranks.data), partial(
                            self.forward, logps), lambda batch: self._ready(batch, self.ranks.total(tally(batch)))))
            self.prefer = Preference(self.run.prefer.beta, reference)
        with _stopping() as stop, keep(), self.ranks.together(lambda: f"step {self.begun + feed.steps - 1}"):
            before = feed.state()
            for step, batch in enumerate(feed, start=first):
                *counts, stopped = self.ranks.total([*tally(batch), len(feed.held), len(stop)])
                done = self._step(step, batch, counts, before, feed, said)
                if log:
                    log.tell(done)
                if (step + 1) % self.run.save_every == 0 or step + 1 == self.run.steps or stopped:
                    self._save(step + 1, feed)
                if log:
                    told(done)
                if stopped:
                    raise KeyboardInterrupt
                before = feed.state()
        if feed.left_out:
            said(feed.summary())

    def plain(self) -> VLM:
        """The model as it was given, not recomputed, compiled or sharded any more."""
        if self.ranks.mesh is None:
            undo(self.model)
            return self.model
        fresh = assemble(self.run, self.run.machine.attention)
        adapters.add(fresh, self.run)
        fresh.load_state_dict({n: whole(t).cpu() for n, t in self.model.state_dict().items()}, assign=True)
        return fresh

    def _ready(self, batch: Batch, counts: list[float]) -> Batch:
        return filled(batch, self.model, self.processor, counts[1:3]).to(self.ranks.device)

    def _step(self, step: int, batch: Batch, counts: list[float], before: dict[str, Any], feed: Feed,
              said: Callable[[str], None]) -> Done:
        begun, learner, shares = time.perf_counter(), self.learner, self.ranks.data[1]
        torch.manual_seed(self.run.seed + self.begun + step)  # drop-out does not depend on where a run was resumed
        new = learner.begin(step)
        watch = Audit(learner, new) if new else None
        sizes = len(batch.ids), len(batch.slots)
        batch, prefer = self._ready(batch, counts), self.prefer
        given = (prefer, batch, feed.held, int(counts[3])) if prefer else (cross_entropy, batch, int(counts[0]))
        value = self.forward(*given)
        (value * shares).backward()  # FSDP takes the mean
        norm = clip([p for p in learner.weights.values() if p.grad is not None], self.run.clip)
        loss, tokens, visual, *preferred = self.ranks.total([value.item(), *sizes, *(prefer.said if prefer else ())])
        self._sound(loss, norm, before, feed)
        if watch:
            watch.gradients()
        learner.step()
        if watch:
            folder = self._save(step + 1, feed)
            table = watch.finish(state.load(folder), audit.kinds(batch))
            if self.ranks.first:
                audit.write(self.out, table)
                said(table)
        spent = time.perf_counter() - begun
        return Done(self.begun + step, loss, int(tokens), int(visual), norm, round(spent, 4), self.name,
                    *preferred)

    def _sound(self, value: float, norm: float, before: dict[str, Any], feed: Feed) -> None:
        """Stop at a loss that says nothing any more, before a weight is touched."""
        most = EXPLODED * math.log(self.model.decoder.vocab)
        if math.isfinite(value) and math.isfinite(norm) and value <= most:
            return
        what = "not finite" if not math.isfinite(value + norm) else f"more than {most:.3g}, {EXPLODED} blind guesses"
        raise VlmkitError(f"loss {value:g}, gradient norm {norm:g}: {what}; no weight was changed. The step held "
                          f"conversations {feed.between(before)}", where=f"step {before['steps']}", code="VK-DIVERGED",
                          hint="resume from the last save with a smaller learning rate")

    def _save(self, step: int, feed: Feed) -> Path:
        told = {"stage": self.name, "step": self.begun + step, "feed": feed.state(), "moved": sorted(self.moved),
                "frozen": self.frozen}  # fmt: skip
        if _digest(self.learner.frozen()) != self.frozen:
            raise VlmkitError("a frozen weight changed", where="train", code="VK-AUDIT")
        tensors = self.learner.tensors(self.moved) | ({"reference": self.prefer.reference} if self.prefer else {})
        folder = state.save(self.out, self.begun + step, told, tensors, self.ranks.first)
        self.ranks.wait()
        return folder


def place(device: str) -> torch.device:
    """auto: a GPU when there is one."""
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    return torch.device(device)


def _digest(marks: dict[str, int]) -> str:
    return hashlib.sha256(repr(sorted(marks.items())).encode()).hexdigest()


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, so that the step under way ends and is saved; a second one ends at once."""
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
