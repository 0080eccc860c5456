"""A model in somebody else's layout: the rules that import a folder, read backwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compose import folder as strangers
from ..compose.preset import Preset
from ..contracts import CheckpointFormat
from ..errors import PresetError, WeightsError
from . import native, shards
from .keys import Table, split
from .paper import part_of
from .quantize import quantized
from .whole import replacing

if TYPE_CHECKING:
    from ..model.vlm import VLM
    from ..processing.processor import Processor

VOCABULARY = ("decoder.embed.weight", "decoder.head.weight")  # tensors with a row for each token


def export(model: VLM, processor: Processor, folder: str | Path, format: str = "llava-hf",
           max_shard_size: int = 5_000_000_000) -> Path:
    """Write a folder that other engines load. It appears whole or not at all; an older export is replaced whole.

    format          a part of kind `format`; llava-hf is what transformers and vLLM read
    max_shard_size  bytes of weights in one file

    Raises PresetError for a composition that has no home in the format. What its users should know is a warning.
    """
    folder, notes = write(model, processor, folder, format, max_shard_size)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return folder


def write(model: VLM, processor: Processor, folder: str | Path, format: str, max_shard_size: int = 5_000_000_000
          ) -> tuple[Path, tuple[str, ...]]:
    """The same; gives the folder and the notes."""
    layout, folder = strangers.make(format), Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(layout, folder))):
        raise WeightsError(f"is already there and is no {format} export of vlmkit; nothing was written", where=folder,
                           hint="name another folder")
    if how := quantized(model):
        raise WeightsError(f"the model is quantized, as {how}; other engines want whole weights", where="export",
                           hint="load it without quantize")
    needs = shards.size(model.state_dict()) + len(processor.tokenizer.source) + native.BESIDES
    with replacing(folder, needs) as beside:
        processor.tokenizer.save(beside / native.TOKENIZER)
        dressed = layout.dress(beside, processor.preset, model)
        tensors = renamed(model, processor.preset, layout, dressed.rows)
        written = shards.write(tensors | dressed.extra, beside, max_shard_size)
        native.seal(beside, processor.preset, written)
    return folder, dressed.notes


def renamed(model: VLM, preset: Preset, layout: CheckpointFormat, rows: int) -> dict[str, Tensor]:
    """Our tensors under their names; those with a row for each token get `rows` of them.   name -> [any]"""
    table, found, lost = Table(layout.rules(preset, ())), dict[str, Tensor](), dict[str, list[str]]()
    for name, tensor in model.state_dict().items():
        piece = table.theirs(name)
        if piece is None:
            lost.setdefault(part_of(name), []).append(name)
        else:
            found.update(split(grown(tensor, rows) if name in VOCABULARY else tensor, piece))
    if lost:
        lines = [f"  {part}: {len(names)}, such as {', '.join(names[:3])}" for part, names in lost.items()]
        raise PresetError("tensors without a home there\n" + "\n".join(lines), where=", ".join(lost))
    return found


def grown(tensor: Tensor, rows: int) -> Tensor:
    """More rows: each the mean of those there are, so that no new token is ever the likeliest.   [any, width]"""
    if (more := rows - len(tensor)) <= 0:
        return tensor
    return torch.cat([tensor, tensor.float().mean(0, keepdim=True).to(tensor.dtype).expand(more, -1)])


def _ours(layout: CheckpointFormat, folder: Path) -> bool:
    return (folder / native.LOCK).is_file() and layout.recognise(folder)
