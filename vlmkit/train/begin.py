"""What a run starts from: its record, and its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from ..checkpoint.load import fill, load
from ..checkpoint.paper import Paper, part_of
from ..checkpoint.whole import writing
from ..compose.bind import compose, sources
from ..errors import ConfigDriftError, PresetError
from ..model.assemble import assemble
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..model.vlm import VLM

FREE = ("name", "about", "save_every", "workers", "log", "machine.device", "machine.recompute", "machine.compile",
        "machine.shard", "vary", "seeds", "jobs")  # what may change between a stop and --resume


def record(run: Run, file: Path, resume: bool = True) -> None:
    """Write a run or a study down, whole; one that is resumed must be the one written there."""
    if resume and file.is_file():
        before, now = ({path: s.value for path, s in sources(r).items()
                        if path not in FREE and path.partition(".")[0] not in FREE}
                       for r in (compose(file.absolute()), run))  # fmt: skip
        if changed := [path for path in before | now if before.get(path) != now.get(path)]:
            told = "\n".join(f"  {path}: {before.get(path)!r}, now {now.get(path)!r}" for path in changed)
            raise ConfigDriftError(f"what is resumed was another one\n{told}", where=file)
    with writing(file) as written:
        yaml.safe_dump(run.dump(), written, sort_keys=False, allow_unicode=True, width=110)


def begin(run: Run) -> tuple[VLM, Processor]:
    """With the run's `weights`; sections that those do not fill, or all where there are none, are drawn from its seed.

    Each section is drawn by itself: those that two runs of one seed have in common start alike, whatever else differs.
    """
    if run.tokenizer is None:
        raise PresetError("names no tokenizer", where=f"preset {run.name}", hint="give it a section `tokenizer`")
    if run.weights:
        return load(run, dtype=torch.float32, seed=run.seed, attention=run.machine.attention,
                    quantize=run.machine.quantize)
    model = assemble(run, run.machine.attention)
    wanted = model.state_dict()
    plan = Paper(run, model, wanted, [], list(dict.fromkeys(map(part_of, wanted))), [])
    fill(model, plan, "cpu", torch.float32, run.seed)
    return model, Processor(run, assemble(run), Tokenizer.from_file(run.tokenizer.from_))
