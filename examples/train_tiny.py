"""Train the model that ships with vlmkit, from nothing: python examples/train_tiny.py trained [--resume] [key=value]

First the tower learns to see (tiny_tower.py), then the model learns to answer (presets/runs/tiny.yaml), then to find
one thing among others (presets/runs/tiny-finds.yaml). All draw scenes from seeds; held-out ones have
other seeds. A stopped run goes on with --resume.
"""

import sys
from pathlib import Path

import tiny_tower
import torch

import vlmkit
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer
from vlmkit.train.loop import STATE, train

CELLS = 6600  # steps of the first part


def main(out, resume, words):
    runs = {name: vlmkit.compose("tiny", f"runs/{name}", *words) for name in ("tiny", "tiny-finds")}
    model = vlmkit.build(run := runs["tiny"], seed=run.seed)
    tokenizer = Tokenizer.from_file(Path(run.tokenizer.from_) / "tokenizer.json")
    processor = Processor(run, assemble(run), tokenizer)
    begun = {name for name in runs if resume and (out / name / STATE).is_dir()}
    if not begun:
        torch.manual_seed(run.seed)  # for the first weights of the lessons' head
        tiny_tower.teach(model.tower, model.image.tiler, CELLS)
    for name, run in runs.items():
        train(model, processor, run, out / name, name in begun)
    print("saved", vlmkit.save(model, processor, out / "model"))


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--resume"]
    main(Path(given[0] if given else "trained"), "--resume" in sys.argv, given[1:])
