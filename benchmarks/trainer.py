"""Training beside transformers' Trainer: the same small model, files, order and steps, from the file to the last step.

    python benchmarks/trainer.py [--device cuda] [--steps 12]

A LLaVA-NeXT with a light tower, frozen, and a Llama decoder, random weights, AdamW at one rate on both sides. The data
are a JSONL of conversations, some with a small picture, some with a large one, some without, and PNG files. Each side
reads them, prepares them, steps, and logs each loss; theirs are compared with ours step by step before anything is
timed. Ours also audits its first step and saves a state that can be resumed; theirs saves nothing. A time is that of
one token, padding not counted; the same number of tokens goes through both.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Bench
from models import Pair, Shape, pair
from PIL import Image
from small import picture
from theirs import prompt
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from vlmkit.compose.bind import compose
from vlmkit.train.data import Feed
from vlmkit.train.loop import train
from vlmkit.types import IGNORED

SHAPE = Shape((256, 4, 4), (168, 182), 512, 6, 8, 8, 1536, 8192)
LIGHT = Shape((64, 3, 2), (56, 76), 128, 4, 4, 2, 256, 1024)
ASK = "What is in it?"
RATE, BATCH = 1e-4, 4
SAY = ("A wide field.", "And this one, which is wide, is a story: tell it to me, what is in it and what is it?")


def write(folder: Path, side: int, count: int) -> Path:
    """Conversations in turn without a picture, with a small one and with a large one."""
    rows = []
    for at in range(count):
        size = (None, (side, side), (2 * side, side + at % 7 * side // 6))[at % 3]
        turns = [{"from": "human", "value": ("<image>\n" if size else "") + ASK}, {"from": "gpt", "value": SAY[at % 2]}]
        row: dict[str, Any] = {"conversations": turns}
        if size:
            picture(*size, seed=at).save(folder / f"{at}.png", compress_level=1)
            row["image"] = f"{at}.png"
        rows.append(json.dumps(row))
    (folder / "talks.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "talks.jsonl"


class Rows(Dataset[dict[str, Any]]):
    """The same rows, in the order of our run, with the labels that ours have."""

    def __init__(self, file: Path, order: list[int], labels: list[torch.Tensor]) -> None:
        said = [json.loads(text) for text in file.read_text().splitlines()]
        self.rows = [(file.parent, said[number], labels[at]) for at, number in enumerate(order)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        folder, row, labels = self.rows[at]
        ask, say = (turn["value"] for turn in row["conversations"])
        image = Image.open(folder / row["image"]).convert("RGB") if "image" in row else None
        return {"text": f"{prompt('vicuna_v1', (ask,))} {say}</s>", "image": image, "labels": labels}


def collate(two: Pair, rows: list[dict[str, Any]]) -> dict[str, Any]:
    images = [row["image"] for row in rows if row["image"] is not None]
    made = dict(two.reader(text=[row["text"] for row in rows], images=images or None, padding=True,
                           padding_side="right", return_tensors="pt"))
    made["labels"] = torch.full_like(made["input_ids"], IGNORED)
    for at, row in enumerate(rows):
        made["labels"][at, : len(row["labels"])] = row["labels"]
    return made


class Ordered(Trainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def theirs(two: Pair, start: dict[str, Any], rows: Rows, steps: int, folder: Path, device: str) -> list[float]:
    two.theirs.load_state_dict(start)
    two.theirs.train()
    arguments = TrainingArguments(
        str(folder / "theirs"), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.98, max_grad_norm=1.0,
        optim="adamw_torch", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=device == "cpu", dataloader_num_workers=0, dataloader_pin_memory=False)
    trainer = Ordered(two.theirs, arguments, train_dataset=rows, data_collator=partial(collate, two))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def ours(two: Pair, start: dict[str, Any], run: Any, folder: Path) -> list[float]:
    two.model.load_state_dict(start)
    shutil.rmtree(folder / "ours", ignore_errors=True)
    train(two.model, two.processor, run, folder / "ours")
    return [json.loads(row)["loss"] for row in (folder / "ours" / "log.jsonl").read_text().splitlines()]


def same(ours: list[float], theirs: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=0)


def apart(two: Pair) -> None:
    """Weights of its own for each side: both change them."""
    for weight in two.theirs.parameters():
        weight.data = weight.data.clone()
    for name, weight in two.theirs.named_parameters():
        weight.requires_grad_("vision_tower" not in name)


def main() -> None:
    logging.set_verbosity_error()
    bench = Bench("trainer", __doc__, lambda ask: ask.add_argument("--steps", type=int, default=12))
    device, steps = bench.options.device, 4 if bench.options.quick else bench.options.steps
    two = pair("next", LIGHT if bench.options.quick else SHAPE, device=device)
    apart(two)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file = write(folder, two.side, steps * BATCH)
        learns = f"{{rate: {RATE}, weight_decay: 0.0}}"
        run = compose(two.processor.preset, f"data={{use: conversations, file: {file}}}", f"steps={steps}",
                      f"batch={BATCH}", f"train={{projector: {learns}, decoder: {learns}, separators: {learns}}}",
                      "schedule={warmup: 0.0, decay: 0.0001}", "optimizer=adamw", "workers=0", "save_every=1000",
                      f"machine={{device: {device}, features: \"off\"}}", "log=none")  # fmt: skip
        feed = Feed(run, two.processor)
        batches = list(feed)
        labels = [some for batch in batches for some in batch.labels.split(batch.lens.tolist())]
        rows = Rows(file, feed.between({"at": 0}), labels)
        for batch, at in zip(batches, range(0, len(rows), BATCH), strict=True):
            read = collate(two, [rows[at + one] for one in range(BATCH)])
            assert torch.equal(read["input_ids"][read["attention_mask"].bool()], batch.ids), "ids differ"
        tokens = sum(len(batch.ids) for batch in batches)
        starts = [{name: value.clone() for name, value in model.state_dict().items()}
                  for model in (two.model, two.theirs)]
        bench.row(f"{steps} steps of {BATCH} conversations, {tokens} tokens", {
            "vlmkit": partial(ours, two, starts[0], run, folder),
            "transformers": partial(theirs, two, starts[1], rows, steps, folder, device)},
            same=same, memory=True, each=tokens)  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
