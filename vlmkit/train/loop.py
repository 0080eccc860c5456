"""The training loop: draw, pack, step, log, save; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from ..checkpoint.quantize import quantized
from ..errors import PresetError, ResumeError, VlmkitError
from ..types import Batch
from .loss import loss
from .muon import Muon

if TYPE_CHECKING:
    from ..compose.preset import Run, Schedule
    from ..model.vlm import VLM
    from ..processing.processor import Processor

STATE, LOG = "state.pt", "log.jsonl"


class Steps(Dataset[Batch]):
    """Step -> Batch. Step s always holds conversations s * size to (s + 1) * size, so resuming needs no bookkeeping.

    Data that end begin again.
    """

    def __init__(self, data: Any, processor: Processor, size: int, steps: int, first: int) -> None:
        self.data, self.processor, self.size, self.steps, self.first = data, processor, size, steps, first

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        start = (self.first + index) * self.size
        conversations = [self.data[i % len(self.data)] for i in range(start, start + self.size)]
        return self.processor(conversations, reply=False, labels=True)


class Done(NamedTuple):
    """One step, looked back on: a line of the log."""

    step: int
    loss: float
    tokens: int
    seconds: float  # of computing; waiting for data comes on top


def train(model: VLM, processor: Processor, run: Run, out: Path, resume: bool = False,
          told: Callable[[Done], None] = lambda done: None) -> VLM:
    """Train what `run.train` names, for `run.steps` steps; progress goes to `out/log.jsonl` and to `told`.

    Raises VlmkitError when the loss is not finite, before any weight is touched by it.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(model, run.train)
    first = _resume(out / STATE, model, optimizers) if resume else 0
    _set_modes(model)
    for step, batch in enumerate(_batches(run, processor, first), start=first):
        begun = time.perf_counter()
        torch.manual_seed(run.seed + step)  # what drop-out draws does not depend on where a run was resumed
        _set_rate(optimizers, _share(step, run.steps, run.schedule))
        value = _step(model, optimizers, batch)
        done = Done(step, round(value, 5), len(batch.ids), round(time.perf_counter() - begun, 3))
        with (out / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(done._asdict()) + "\n")
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            _save(out / STATE, model, optimizers, step + 1)
        told(done)
    return model.eval()


def _set_modes(model: VLM) -> None:
    """Training mode where something learns; what is frozen keeps its statistics and drops nothing."""
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(p.requires_grad for p in weights):
            part.eval()


def _step(model: VLM, optimizers: list[Optimizer], batch: Batch) -> float:
    value = loss(model, batch)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
    if not torch.isfinite(value) or not torch.isfinite(norm):
        raise VlmkitError(f"loss {value.item()}, gradient norm {norm.item()}: not finite; no weight was changed",
                          hint="resume from the last save with a smaller learning rate")
    for optimizer in optimizers:
        optimizer.step()
    return value.item()


def _optimizers(model: VLM, rates: dict[str, float]) -> list[Optimizer]:
    """Muon for the matrices between layers, AdamW for all else; what no section names is frozen.

    Muon's update is scaled to the size of AdamW's, so one learning rate serves both.
    """
    if "decoder" in rates and (how := quantized(model)):
        raise PresetError(f"the decoder is quantized, as {how}: its matrices cannot learn", where="train.decoder",
                          hint="load it without quantize, or train other sections")
    model.requires_grad_(False)
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for section, rate in rates.items():
        found = {n: p for n, p in model.named_parameters() if (n + ".").startswith(section + ".")}
        if not found:
            raise PresetError(f"nothing is called {section!r} in this model", where="train",
                              hint=f"sections: {', '.join(n for n, _ in model.named_children())}")
        for name, p in found.items():
            p.requires_grad_(True)
            inner = p.ndim == 2 and not name.endswith(("embed.weight", "head.weight"))
            group = {"params": [p], "lr": rate, "rate": rate, "weight_decay": 0.02 if p.ndim > 1 else 0.0}
            (matrices if inner else others).append(group)
    made: list[Optimizer] = []
    if matrices:
        made.append(Muon(matrices))
    if others:
        made.append(torch.optim.AdamW(others, betas=(0.9, 0.98)))
    return made


def _batches(run: Run, processor: Processor, first: int) -> Iterator[Batch]:
    steps = Steps(run.data.build(), processor, run.batch, run.steps, first)
    workers = run.workers
    return iter(DataLoader(steps, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
                           multiprocessing_context="fork" if workers else None))


def _share(step: int, steps: int, schedule: Schedule) -> float:
    """Linear warm-up, the full rate, then a cosine down to nothing.   share of the full learning rate"""
    rise = max(1, round(schedule.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    fall = max(rise, steps - round(schedule.decay * steps))
    return 0.5 * (1 + math.cos(math.pi * max(0, step - fall) / max(1, steps - fall)))


def _set_rate(optimizers: list[Optimizer], share: float) -> None:
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["lr"] = group["rate"] * share


def _save(file: Path, model: VLM, optimizers: list[Optimizer], step: int) -> None:
    beside = file.with_suffix(".part")
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, beside)
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    beside.replace(file)


def _resume(file: Path, model: VLM, optimizers: list[Optimizer]) -> int:
    if not file.is_file():
        raise ResumeError("there is nothing to resume", where=file, hint="start without --resume")
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"], strict=True)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ResumeError(f"is no state of this run: {error}", where=file) from None
