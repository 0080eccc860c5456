"""Low-rank adapters, by peft: over the linear layers of a part's blocks, kept as PEFT folders, merged in the end."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoint.quantize import Quantized
from ..checkpoint.whole import replacing
from ..errors import PresetError
from .stages import blocks

if TYPE_CHECKING:
    from ..compose.preset import Run

NAME = "default"  # as peft calls the only adapter
LAYERS = (nn.Linear, Quantized)


def add(model: nn.Module, run: Run) -> None:
    """Put adapters where `run.train` asks for them. They start as nothing: what the model computes is the same."""
    for section, learns in run.train.items():
        if learns.lora is None:
            continue
        peft, part = _peft(), model.get_submodule(section)
        names = {module: name for name, module in part.named_modules()}
        inside = [m for block in blocks(model, section, learns.layers) for m in block.modules()]
        layers: list[Any] = [m for m in inside if isinstance(m, LAYERS)]
        if not layers:
            raise PresetError("its blocks hold no linear layer", where=f"train.{section}.lora",
                              hint="adapters are for transformers; let it learn whole, or not")
        kinds = {type(m): peft.tuners.lora.Linear for m in layers if isinstance(m, Quantized)}
        for layer in layers:
            if isinstance(layer, Quantized):  # peft asks for its sizes by these names
                vars(layer).update(in_features=layer.ins, out_features=layer.outs)
        config = peft.LoraConfig(r=learns.lora.rank, lora_alpha=learns.lora.alpha, lora_dropout=learns.lora.dropout,
                                 target_modules=[names[layer] for layer in layers])  # fmt: skip
        config._register_custom_module(kinds)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # our own, of few bits
            torch.manual_seed(run.seed)
            peft.inject_adapter_in_model(config, part, NAME)


@torch.no_grad()
def finish(model: nn.Module, run: Run, folder: Path, write: bool = True) -> set[str]:
    """Keep each part's adapters in a PEFT folder, then merge them into its weights; the names of those."""
    merged = set()
    for section in [section for section, learns in run.train.items() if learns.lora]:
        part: Any = model.get_submodule(section)
        if write:
            save(part, folder / section)
        for name, layer in list(part.named_modules()):
            if isinstance(layer, _peft().tuners.lora.LoraLayer):
                home, _, child = name.rpartition(".")
                setattr(part.get_submodule(home), child, _merged(layer))
                merged.add(f"{section}.{name}.weight")
        del part.peft_config
    return merged


def _merged(layer: Any) -> nn.Module:
    """The layer under an adapter, with what the adapter learned; few bits cannot hold that, so it becomes whole."""
    base: nn.Module = layer.get_base_layer()
    if not isinstance(base, Quantized):
        layer.merge()
        return base
    whole = nn.Linear(base.ins, base.outs, bias=base.bias is not None, device=base.scale.device, dtype=base.scale.dtype)
    weight = base(torch.eye(base.ins, device=base.scale.device, dtype=base.scale.dtype))
    if base.bias is not None:
        whole.bias.copy_(base.bias)
        weight -= base.bias
    whole.weight.copy_(weight.T + layer.get_delta_weight(NAME))
    return whole


def save(part: Any, folder: Path) -> None:
    """A PEFT folder: adapter_model.safetensors and adapter_config.json, its names those of our modules."""
    from safetensors.torch import save_file

    tensors = {f"base_model.model.{n}": t.detach().cpu().contiguous()
               for n, t in _peft().get_peft_model_state_dict(part, adapter_name=NAME).items()}
    with replacing(folder.resolve(), sum(t.nbytes for t in tensors.values())) as beside:
        save_file(tensors, beside / "adapter_model.safetensors", {"format": "pt"})
        part.peft_config[NAME].save_pretrained(beside)


def _peft() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("peft")
    except ImportError as error:
        raise PresetError(f"adapters need peft, which cannot be imported: {error}", where="train",
                          hint="pip install 'vlmkit[train]'") from None
