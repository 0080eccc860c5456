"""What happened at each step: log.jsonl, and TensorBoard or W&B where they are wanted."""

from __future__ import annotations

import importlib
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoint.whole import writing
from ..errors import VlmkitError, clean

if TYPE_CHECKING:
    from ..compose.preset import Run

LOG = "log.jsonl"


class Done(NamedTuple):
    """One step, looked back on: a line of the log."""

    step: int  # from the first of the first stage on
    loss: float
    tokens: int
    visual: int  # of the tokens, those of pictures and clips
    norm: float  # of all gradients together, before they are clipped
    seconds: float  # of computing; waiting for data comes on top
    stage: str = ""
    margin: float | None = None  # of a stage that prefers: how much more the chosen answers gained, times beta
    preferred: float | None = None  # share of the pairs whose chosen answer gained more


class Log:
    """A line of JSON for each step, and the same numbers for a tracker."""

    def __init__(self, out: Path, run: Run, first: int) -> None:
        self.file, self.kind = out / LOG, run.log
        self.tracker: Any = None
        keep(self.file, first)
        if run.log == "wandb":
            self.tracker = _wandb(out, run, first)
        elif run.log == "tensorboard":
            try:
                writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            except ImportError:  # it comes with the extra `train`; log.jsonl holds the same
                return
            self.tracker = writer(str(out / "tensorboard"), purge_step=first)

    def tell(self, done: Done) -> None:
        with self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: value for name, value in done._asdict().items() if value is not None}) + "\n")
        said = {"loss": done.loss, "norm": done.norm, "tokens": done.tokens, "visual share": done.visual / done.tokens,
                "tokens per second": done.tokens / max(done.seconds, 1e-9)}  # fmt: skip
        if done.margin is not None and done.preferred is not None:
            said |= {"margin": done.margin, "preferred": done.preferred}
        if self.kind == "wandb":
            self.tracker.log(said, step=done.step)
        elif self.tracker is not None:
            for name, value in said.items():
                self.tracker.add_scalar(name, value, done.step)

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.finish() if self.kind == "wandb" else self.tracker.close()


def keep(file: Path, first: int) -> None:
    """Drop the lines from a step on, and one that was cut off: they are written again."""
    if not file.is_file():
        return
    kept = [line for line in file.read_text("utf-8").splitlines(keepends=True)
            if line.endswith("}\n") and json.loads(line)["step"] < first]
    with writing(file) as written:
        written.writelines(kept)


def _wandb(out: Path, run: Run, first: int) -> Any:
    """A run of W&B; one that is resumed goes on under its id, which lies in the folder."""
    try:
        wandb: Any = importlib.import_module("wandb")
    except ImportError:
        raise VlmkitError("W&B is not installed", where="log", hint="pip install wandb, or log=tensorboard") from None
    file = out / "wandb.id"
    if not first or not file.is_file():
        file.write_text(secrets.token_hex(6), "utf-8")
    try:
        return wandb.init(project="vlmkit", name=out.resolve().name, id=file.read_text("utf-8"), resume="allow",
                          dir=str(out), config=run.dump())
    except wandb.Error as error:
        raise VlmkitError(f"W&B cannot begin: {clean(error)}", where="log",
                          hint="wandb login, WANDB_MODE=offline, or log=tensorboard") from None
