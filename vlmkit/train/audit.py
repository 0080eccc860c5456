"""Does what was asked to learn learn, is it saved, and which words are learned? Asked once, after the first step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import VlmkitError
from ..types import IGNORED, Batch
from .parallel import whole
from .stages import Learner, mark, marks

if TYPE_CHECKING:
    from ..processing.processor import Processor

FILE = "audit.txt"
HEADS = ("part", "weights", "asked to train", "has gradient", "changed", "saved", "equal after reload")


class Audit:
    """Of the weights that learn from a step on: looked at around that step, then as they were saved."""

    def __init__(self, learner: Learner, new: set[str]) -> None:
        self.learner, self.new = learner, sorted(new)
        self.before = marks({n: learner.masters[n] for n in self.new})
        self.still = learner.frozen()
        self.grads: dict[str, bool] = {}  # whether any of it is not 0; missing where there is none at all

    def gradients(self) -> None:
        """Look at the gradients, before the step uses them up."""
        weights = self.learner.weights
        self.grads = {n: bool(whole(g.norm())) for n in self.new if (g := weights[n].grad) is not None}

    def finish(self, saved: dict[str, Tensor], kinds: set[str]) -> str:
        """The table, a row for each part; raises VlmkitError where it shows a mismatch.

        saved   the state as it was read back
        kinds   what the step saw: image, video; a part that only sees something else is judged by no gradient
        """
        learner = self.learner
        now = marks({n: learner.masters[n] for n in self.new})
        changed = {n for n in self.new if now[n] != self.before[n]}
        kept = {n: t for n in self.new if (t := saved.get(f"master.{n}", saved.get(f"model.{n}"))) is not None}
        equal = {n for n, t in kept.items() if mark(t) == now[n]}
        missing = {n for n in self.new if n not in self.grads and self._seen(n, kinds)}
        wrong = [*_told("got no gradient: no path leads from it to the loss", missing),
                 *_told("has a gradient and did not change", {n for n, g in self.grads.items() if g} - changed),
                 *_told("is not in what was saved", set(self.new) - kept.keys()),
                 *_told("is another one after it was saved and read", kept.keys() - equal),
                 *_told("is frozen and changed", {n for n, m in learner.frozen().items() if self.still.get(n, m) != m})]
        rows: list[tuple[str, ...]] = [HEADS]
        for section in learner.run.train:
            if names := {n for n in self.new if learner.asked[n] == section}:
                count = f"{sum(learner.weights[n].numel() for n in names):,}"
                sets = (names, self.grads.keys() & names, changed & names, kept.keys() & names, equal & names)
                rows.append((section, count, *(str(len(some)) for some in sets)))
        still = sum(p.numel() for n, p in learner.model.named_parameters() if n in self.still)
        rows.append(("the rest", f"{still:,}", "0", "", "0", "", ""))
        table = "\n".join(_columns(rows))
        if wrong:
            raise VlmkitError("what learns is not what was asked to\n" + "\n".join([*wrong, table]), where="train",
                              code="VK-AUDIT", hint="leave out what cannot learn, or change the model")
        return table

    def _seen(self, name: str, kinds: set[str]) -> bool:
        """Whether a step that saw these kinds must reach a weight."""
        part, model = name.split(".")[0], self.learner.model
        if part == "separators":
            return False  # laid between tiles, where there are several
        if part in ("image", "video"):
            return part in kinds
        return part == "decoder" or any(getattr(model.stream(kind), part) is None for kind in kinds)


def _told(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"  {found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}: {what}"] if found else []


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def kinds(batch: Batch) -> set[str]:
    """What a batch shows: image, video."""
    return {visual.layout.kind for visual in batch.visuals}


def labels(processor: Processor, conversation: Any) -> list[tuple[str, bool]]:
    """A conversation as the model reads it: pieces of text in order, and whether they are learned."""
    sample = processor.sample(conversation, reply=False, labels=True)
    assert sample.labels is not None
    slots = set(sample.slots.tolist())
    tokens = [(id, at in slots, label != IGNORED)
              for at, (id, label) in enumerate(zip(sample.ids.tolist(), sample.labels.tolist(), strict=True))]
    found = []
    for (seen, learned), some in groupby(tokens, key=lambda token: token[1:]):
        ids = [token[0] for token in some]
        text = f"[{len(ids)} visual tokens]" if seen else processor.tokenizer.decode(ids, special=True)
        found.append((text, learned))
    return found


def write(out: Path, table: str) -> None:
    (out / FILE).write_text(table + "\n", "utf-8")
