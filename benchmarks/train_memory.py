"""What a training step needs at most over the model itself, beside transformers' for the same rows.

    python benchmarks/train_memory.py

A LLaVA-1.5 with a light frozen tower and a Llama decoder of width 512, random weights, vocabularies of published sizes.
A step is the loss, its gradients and AdamW (torch's, on both sides). Each side is a process of its own, with the same
weights, ids, labels and pixels; losses and every gradient are compared first. A short step is made before the one that
is measured, so that imports, weights and what the optimizer keeps count for nobody: what is left are activations,
logits and gradients. Memory is the highest resident size of the process, less what it was before the step; blocks that
are freed go back to the system at once, on both sides. Of the rows all is learned, or a part; the last are several
beside each other, and transformers pads them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Bench, peak
from models import Pair, Shape, Talk, pair
from packing import SAY, learn, padded, talk
from theirs import rename

from vlmkit.train.loss import loss

SHAPE = Shape((256, 4, 4), (168, 182), 512, 6, 8, 8, 1536, 32064)
SIZES = {"32,064 words": SHAPE, "152,000 words, tied": SHAPE._replace(vocab=152_000, tied=True)}
SIDES = ("vlmkit", "transformers")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}  # what is freed leaves the process
CASES = ("one answer, all of it learned", "a picture, fifty answers", "four unequal conversations")
TOLERANCE = 1e-4  # of a gradient, as a share of its length


def rows(two: Pair) -> dict[str, list[Talk]]:
    """Conversations that make a batch; `short` is the one before."""
    seen = ((two.side, two.side),)
    every = ([Talk(("What?", " ".join([SAY] * 120)))], [talk(two, *seen, times=50)],
             [talk(two, times=20), talk(two, *seen, times=20), talk(two, times=8), talk(two, *seen, times=2)])
    return {"short": [talk(two, *seen)], **dict(zip(CASES, every, strict=True))}


def step(who: str, two: Pair, batch: Any, given: dict[str, Any], moves: torch.optim.Optimizer, told: list[float]
         ) -> None:
    value = loss(two.model, batch) if who == "vlmkit" else two.theirs(**given, use_cache=False).loss
    value.backward()
    told.append(value.item())
    moves.step()


def child(who: str, shape: Shape, case: str, file: Path) -> None:
    """One side of a case; what it found is written to the file."""
    two = pair("llava", shape)
    learn(two)
    model = two.model if who == "vlmkit" else two.theirs
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moves = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0)
    for name in ("short", case):
        talks = rows(two)[name]
        batch = two.processor([one.messages for one in talks], reply=False, labels=True)
        told: list[float] = []
        side = partial(step, who, two, batch, padded(two, batch, talks), moves, told)
        moves.zero_grad()
        found = {"peak": peak(side), "loss": told[0], "tokens": len(batch.ids),
                 "learned": int((batch.labels >= 0).sum())}
    grads = {name: p.grad for name, p in weights.items() if p.grad is not None}
    if who != "vlmkit":
        grads = rename(grads)
    torch.save(found | {"grads": grads}, file)


def ask(who: str, size: str, case: str, folder: Path) -> dict[str, Any]:
    file = folder / "found.pt"
    words = [who, size, case, str(file)]
    done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True, timeout=900,
                          env=os.environ | RETURNED)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{who}, {case}: {done.stderr}")
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs, or nothing."""
    if abs(ours["loss"] - theirs["loss"]) > TOLERANCE * abs(theirs["loss"]):
        return f"losses {ours['loss']:g} and {theirs['loss']:g}"
    for name, right in theirs["grads"].items():
        if (off := (ours["grads"][name] - right).norm() / right.norm()) > TOLERANCE:
            return f"gradient of {name} differs by {off:.2g} of its length"
    return f"{ours['grads'].keys() ^ theirs['grads'].keys()} learn on one side" * (
        ours["grads"].keys() != theirs["grads"].keys())


def main() -> None:
    bench = Bench("train_memory", __doc__, lambda ask: ask.add_argument("--child", nargs=4, help=argparse.SUPPRESS))
    if words := bench.options.child:
        return child(words[0], SIZES[words[1]], words[2], Path(words[3]))
    with tempfile.TemporaryDirectory() as name:
        for size in list(SIZES)[: 1 if bench.options.quick else None]:
            for case in CASES:
                found = {who: ask(who, size, case, Path(name)) for who in SIDES}
                ours, theirs = found.values()
                if wrong := same(ours, theirs):
                    bench.wrong.append(f"{case}: {wrong}")
                    continue
                bench.add({"stage": "train_memory", "turns": 1, "seconds": {}, "ratio": {},
                           "case": f"{size}: {case}: {ours['tokens']} tokens, {ours['learned']} learned",
                           "peak": {who: one["peak"] for who, one in found.items()}})
    bench.end()


if __name__ == "__main__":
    main()
