"""Conversations to batches: in one order whatever prepares them, and what cannot be learned from left out and told."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, ResumeError, VlmkitError, clean
from ..types import Batch
from .packing import Group, LeftOut, Load, Made, Making, Sizes, place

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..processing.processor import Processor

LOG = "left_out.jsonl"
EARLY = 1000  # conversations after which the share that is left out counts as a share of what was seen
APART = 100_003  # conversations between the places where two seeds enter an order
MANY = 256  # bad ones in a row, after which a step does not wait for a good one any more


class Feed:
    """The batches of a run, `run.steps` of them; data that end begin again, in another order.

    state  what `state()` told behind a batch: the very next one comes first
    out    a folder: what is left out is told there in `left_out.jsonl`

    Conversation i of the order is the same for any number of workers and ranks. A step is the next `run.batch` of them,
    or as many as fit `run.tokens`, laid end to end. Bad ones are left out, not replaced.
    """

    def __init__(self, run: Run, processor: Processor, state: Mapping[str, Any] | None = None, rank: int = 0,
                 world: int = 1, out: Path | None = None) -> None:
        self.run, self.data, self.rank, self.world = run, run.data.build(), rank, world
        self.making = Making(self.data, processor, run.tokens, rank, world, run.prefer is not None)
        if not len(self.data):
            raise DataError("there is no conversation", where="data")
        told = state or {"at": 0, "steps": 0, "of": len(self.data), "left_out": []}
        if told["of"] != len(self.data):
            raise ResumeError(f"{len(self.data)} conversations; the run that is resumed had {told['of']}", where="data")
        self.at, self.steps, self._good = int(told["at"]), int(told["steps"]), int(told["at"])
        self._bad = {one[0]: LeftOut(*one) for one in told["left_out"]}
        self.held: list[int] = []  # conversations of the batch that was given last, those of this rank
        self._orders: dict[int, Any] = {}
        self.log = out / LOG if out else None
        self._logged = _logged(self.log) if self.log else set()

    @property
    def left_out(self) -> list[LeftOut]:
        return list(self._bad.values())

    def state(self) -> dict[str, Any]:
        """Where it stands behind the batch that was given last, as plain JSON."""
        left_out = [list(one) for one in self.left_out]
        return {"at": self.at, "steps": self.steps, "of": len(self.data), "left_out": left_out}

    def between(self, before: Mapping[str, Any]) -> list[int]:
        """The conversations of the steps since `before`, an earlier `state()`."""
        return [index for at in range(int(before["at"]), self.at) if (index := self._index(at)) not in self._bad]

    @property
    def again(self) -> bool:
        """Whether a conversation may come more than once; a budget of tokens does not tell."""
        return bool(self.run.tokens or self.run.prefer) or self.run.steps * self.run.batch > len(self.data)

    def about(self) -> str:
        """How much there is, and how often it comes, for people."""
        run, size = self.run, len(self.data)
        times = 0 if run.tokens else run.steps * run.batch / size
        often = f", {times:.3g} times in {run.steps:,} steps" if times >= 1 else ""
        epochs: dict[str, float] = getattr(self.data, "epochs", {})
        shares = [f"{name} {times:.3g} times" for name, times in epochs.items()]
        return f"{size:,} conversations{often}" + (f"; in each epoch {', '.join(shares)}" if shares else "")

    def summary(self) -> str:
        """What was left out and why, for people; "" when nothing was."""
        if not self._bad:
            return ""
        reasons = Counter(one.reason for one in self.left_out)
        first = {one.reason: one for one in reversed(self.left_out)}
        rows = [f"  {n:>5} {reason}, the first at {first[reason].where}: {first[reason].what}"
                for reason, n in reasons.most_common()]
        return "\n".join([f"left out {len(self._bad)} of {min(self.at, len(self.data)):,} conversations", *rows])

    def __iter__(self) -> Iterator[Batch]:
        workers = self.run.workers
        made = iter(_loader(self.making, self._groups(), workers, 4))
        while self.steps < self.run.steps:
            try:
                step = next(made)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                hint = f"it prepared conversations from place {self.at} on; workers=0 shows what happens"
                raise DataError(f"a process that prepares data ended: {clean(error)}", hint=hint) from None
            if isinstance(step, VlmkitError):
                raise step
            self.at = step.end
            self._note(step)
            if step.batch is None:
                if self.at - self._good >= len(self.data):
                    raise DataError("no conversation is left\n" + self.summary(), where="data")
                continue
            self._good, self.steps, self.held = self.at, self.steps + 1, step.held
            yield step.batch

    def _note(self, step: Made) -> None:
        """Count and log what is newly left out; too many stop the run."""
        new = {one.number: one for one in [*step.bad, *step.mine] if one.number not in self._bad}
        self._bad.update(new)
        log = [one for one in new.values() if one.where not in self._logged and (self.rank == 0 or one in step.mine)]
        if self.log and log:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(one._asdict()) + "\n" for one in log)
        size = len(self.data)
        most = self.run.skip * max(min(self.at, size), min(size, EARLY))
        if new and len(self._bad) > most:
            raise DataError(f"too many conversations cannot be learned from\n{self.summary()}", where="data",
                            limit=self.run.skip, got=f"{len(self._bad)} of {min(self.at, size)}", setting="skip")

    def _index(self, at: int) -> int:
        """The conversation at a place in the endless order. One of its own (`ordered`) is kept, each seed enters it
        at another place."""
        epoch, place = divmod(at, len(self.data))
        if getattr(self.data, "ordered", False):
            return (place + self.run.seed * APART) % len(self.data)
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self.run.seed, epoch]).permutation(len(self.data))}
        return int(self._orders[epoch][place])

    def _groups(self) -> Iterator[Group]:
        if self.run.tokens:
            yield from self._packed(self.run.tokens)
            return
        for at in count(self.at, self.run.batch):
            end = at + self.run.batch
            yield Group([[self._index(place) for place in range(at, end)]], end, [])

    def _packed(self, tokens: int) -> Iterator[Group]:
        """Conversations in order while they fit, by lengths that are known before any pixel is."""
        indices = map(self._index, count(self.at))
        sizes = iter(_loader(Sizes(self.making), indices, min(1, self.run.workers), 64))
        loads, bad, begun = [Load() for _ in range(self.world)], list[LeftOut](), self.at
        for at in count(self.at):
            if len(bad) == MANY or at - begun == len(self.data):
                yield Group([load.indices for load in loads], at, bad)
                loads, bad, begun = [Load() for _ in range(self.world)], [], at
            index, size = next(sizes)
            if isinstance(size, VlmkitError):
                raise size
            if isinstance(size, LeftOut):
                bad.append(size)
                continue
            if (load := place(loads, size, tokens)) is None:
                yield Group([load.indices for load in loads], at, bad)
                loads, bad, begun = [Load() for _ in range(self.world)], [], at
                load = loads[0]
            load.add(index, size)


def _logged(file: Path) -> set[str]:
    """Places that a log tells already; a last line that is cut off, where a run was killed, is taken away."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not text.endswith("\n") and text:
        text = text[: text.rfind("\n") + 1]
        file.write_text(text, encoding="utf-8")
    found = set()
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            found.add(json.loads(line)["where"])
    return found


def _loader(made: Dataset[Any], keys: Iterable[Any], workers: int, ahead: int) -> DataLoader[Any]:
    """Results in the order of the keys. No number is drawn from anybody's generator."""
    return DataLoader(made, batch_size=None, sampler=keys, num_workers=workers, worker_init_fn=_alone,
                      generator=torch.Generator(), prefetch_factor=ahead if workers else None,
                      multiprocessing_context="fork" if workers else None)


def _alone(worker: int) -> None:
    """Whoever asked for them ends these processes; what it does on a signal is not for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
