"""The model that a run starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..checkpoint.load import fill, load
from ..checkpoint.paper import Paper, part_of
from ..errors import PresetError
from ..model.assemble import assemble
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..model.vlm import VLM


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
    sections = list(dict.fromkeys(map(part_of, model.state_dict())))
    fill(model, Paper(run, model, [], sections, []), "cpu", torch.float32, run.seed)
    return model, Processor(run, assemble(run), Tokenizer.from_file(run.tokenizer.from_))
