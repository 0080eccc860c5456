"""The training loop: draw, pack, step, log, save; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import PresetError, ResumeError, VlmkitError
from ..types import Batch
from .loss import loss

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..model.vlm import VLM
    from ..processing.processor import Processor

STATE = "state.pt"


class Steps(Dataset[Batch]):
    """Step -> Batch. Step s always holds conversations s * size to (s + 1) * size, so resuming needs no bookkeeping."""

    def __init__(self, data: Any, processor: Processor, size: int, steps: int, first: int) -> None:
        self.data, self.processor, self.size, self.steps, self.first = data, processor, size, steps, first

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        start = (self.first + index) * self.size
        conversations = [self.data[i] for i in range(start, start + self.size)]
        return self.processor(conversations, reply=False, labels=True)


def train(model: VLM, processor: Processor, run: Run, out: Path, resume: bool = False) -> VLM:
    """Train what `run.train` names, for `run.steps` steps; progress goes to `out/log.jsonl`.

    Raises VlmkitError when the loss is not finite, before any weight is touched by it.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(model, run.train)
    first = _resume(out / STATE, model, optimizer) if resume else 0
    torch.manual_seed(run.seed + first)
    model.train()
    for step, batch in enumerate(_batches(run, processor, first), start=first):
        begun = time.perf_counter()
        _set_rate(optimizer, _share(step, run.steps, run.schedule.warmup))
        value = _step(model, optimizer, batch)
        _log(out / "log.jsonl", step, value, len(batch.ids), time.perf_counter() - begun)
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            _save(out / STATE, model, optimizer, step + 1)
    return model.eval()


def _step(model: VLM, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    value = loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    learned = [p for g in optimizer.param_groups for p in g["params"]]
    norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
    if not torch.isfinite(value) or not torch.isfinite(norm):
        raise VlmkitError(f"loss {value.item()}, gradient norm {norm.item()}: not finite; no weight was changed",
                          hint="resume from the last save with a smaller learning rate")
    optimizer.step()
    return value.item()


def _optimizer(model: VLM, rates: dict[str, float]) -> torch.optim.Optimizer:
    """One group for each named section; everything unnamed is frozen. Norms and biases do not decay."""
    model.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for section, rate in rates.items():
        weights = [p for n, p in model.named_parameters() if (n + ".").startswith(section + ".") and id(p) not in taken]
        if not weights:
            raise PresetError(f"nothing is called {section!r} in this model", where="train",
                              hint=f"sections: {', '.join(n for n, _ in model.named_children())}")
        taken |= {id(p) for p in weights}
        for p in weights:
            p.requires_grad_(True)
        groups.append({"params": [p for p in weights if p.ndim > 1], "lr": rate, "weight_decay": 0.05})
        groups.append({"params": [p for p in weights if p.ndim < 2], "lr": rate, "weight_decay": 0.0})
    groups = [{**g, "rate": g["lr"]} for g in groups if g["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _batches(run: Run, processor: Processor, first: int) -> Iterator[Batch]:
    steps = Steps(run.data.build(), processor, run.batch, run.steps, first)
    workers = run.workers
    return iter(DataLoader(steps, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
                           multiprocessing_context="fork" if workers else None))


def _share(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine down to nothing.   share of the full learning rate"""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * share


def _log(file: Path, step: int, value: float, tokens: int, seconds: float) -> None:
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": step, "loss": round(value, 5), "tokens": tokens,
                              "seconds": round(seconds, 3)}) + "\n")


def _save(file: Path, model: VLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    beside = file.with_suffix(".part")
    state: dict[str, Any] = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, beside)
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    beside.replace(file)


def _resume(file: Path, model: VLM, optimizer: torch.optim.Optimizer) -> int:
    if not file.is_file():
        raise ResumeError("there is nothing to resume", where=file, hint="start without --resume")
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    weights: dict[str, Tensor] = state["model"]
    model.load_state_dict(weights, strict=True)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
