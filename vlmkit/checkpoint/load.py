"""A name, a folder or a preset -> a model and its processor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..compose.bind import compose
from ..compose.find import presets
from ..compose.preset import Preset
from ..errors import CheckpointMismatchError, WeightsError
from ..model.assemble import assemble
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from . import native
from .tensors import Stored, headers, read

if TYPE_CHECKING:
    from ..model.vlm import VLM

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(source: str | Path | Preset, *overrides: str, device: Any = "cpu", dtype: torch.dtype | None = None,
         attention: str = "auto", verify: bool = True) -> tuple[VLM, Processor]:
    """A model with its weights, and the processor that feeds it.

    source   a preset's name, a checkpoint folder, or a composed preset
    dtype    None: what the checkpoint stores
    verify   compare each file with the SHA-256 of the lock file first
    """
    preset = _compose(source, overrides)
    folder = _home(preset)
    if verify:
        native.verify(folder)
    skeleton = assemble(preset)
    stored = headers(folder)
    _compare(skeleton, stored, folder)
    dtype = dtype or _stored_dtype(stored)
    model = assemble(preset, attention)
    fill(model, read(stored), device, dtype)
    processor = Processor(preset, skeleton, Tokenizer.from_file(folder / native.TOKENIZER))
    return model.eval(), processor


def fill(model: VLM, tensors: Iterable[tuple[str, torch.Tensor]], device: Any, dtype: torch.dtype) -> None:
    """Put tensors in the place of a meta model's; afterwards nothing is on meta.

    Each is copied out of its file: there, numbers lie unaligned and round otherwise, and a file that is cut while
    the model lives would end the process.
    """
    ready = {name: t.to(device, dtype if t.is_floating_point() else None, copy=True) for name, t in tensors}
    model.load_state_dict(ready, assign=True, strict=True)
    for part in model.modules():
        compute = getattr(part, "materialize", None)
        if callable(compute):  # what no checkpoint holds, such as rotary tables
            compute()
    stray = [name for name, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if stray:
        raise WeightsError(f"{len(stray)} tensors got no values: {', '.join(stray[:10])}")


def _compose(source: str | Path | Preset, overrides: tuple[str, ...]) -> Preset:
    if isinstance(source, Preset):
        return compose(source, *overrides) if overrides else source
    path = Path(source)
    if path.is_dir() and (isinstance(source, Path) or source not in presets()):  # a name means a preset first
        if not native.is_native(path):
            raise WeightsError(f"holds no {native.PRESET} with {native.LOCK}", where=path,
                               hint="only folders that vlmkit wrote are read so far")
        return compose(str(path / native.PRESET), *overrides)
    return compose(str(source), *overrides)


def _home(preset: Preset) -> Path:
    """The one native folder of a preset's weights."""
    for entry in preset.weights:
        folder = Path(entry.from_)  # a place beside the preset was made absolute when it was read
        if entry.format == "native" and native.is_native(folder):
            return folder
    told = ", ".join(f"{w.from_} ({w.format})" for w in preset.weights) or "none"
    raise WeightsError(f"no weights at hand; the preset names: {told}", where=f"preset {preset.name}",
                       hint="vlmkit.build(preset) gives a model with random weights")


def _compare(model: VLM, stored: dict[str, Stored], folder: Path) -> None:
    """Names and shapes, both ways, before any memory is taken."""
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in stored]
    extra = [n for n in stored if n not in wanted]
    other = [f"{n} is {list(stored[n].shape)} {stored[n].dtype}, wanted {list(t.shape)} {_kind(t)}"
             for n, t in wanted.items() if n in stored and not _fits(stored[n], t)]
    if missing or extra or other:
        lines = [_group("missing", missing), _group("left over", extra), _group("of another shape or kind", other)]
        raise CheckpointMismatchError("does not hold this model\n" + "\n".join(filter(None, lines)), where=folder,
                                      hint="the preset and the weights must come from the same model")


def _fits(stored: Stored, wanted: torch.Tensor) -> bool:
    return stored.shape == tuple(wanted.shape) and ("F" in stored.dtype) == wanted.is_floating_point()


def _kind(wanted: torch.Tensor) -> str:
    return "float" if wanted.is_floating_point() else "integer"


def _group(title: str, names: list[str]) -> str:
    shown = "".join(f"\n    {name}" for name in names[:10])
    return f"  {len(names)} {title}:{shown}" if names else ""


def _stored_dtype(stored: dict[str, Stored]) -> torch.dtype:
    floats = [s.dtype for s in stored.values() if s.dtype in DTYPES]
    return DTYPES[max(set(floats), key=floats.count)] if floats else torch.float32
