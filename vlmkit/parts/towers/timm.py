"""Any timm model, read at one layer or at several."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from vlmkit.contracts import PartConfig
from vlmkit.errors import PresetError, ShapeError
from vlmkit.limits import MiB
from vlmkit.types import Features

Colour = tuple[float, float, float]
Scalar = bool | int | float | str | None

# arguments of timm.create_model that read files or the network, or change what is returned
_CLOSED = {"checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "out_indices"}
_MOST = 16_384  # of any number in `options`
_BLOCKS = 512  # of one that counts blocks: a preset must not build them without end
_SHARE = 1 / 16  # of the activations that a CPU holds at once: what its caches hold is soon used again
_LIVE = 16  # tensors of one block's output size alive at once: residual, norm, q k v, attention, two of MLP width


class Config(PartConfig):
    """Which model, and where it is read."""

    model: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,200}$", description="a name that timm.list_models() knows")
    layer: int | tuple[int, ...] = Field(
        -1, description="-1 is the output of the last block, 1 that of the first; of several the channels are joined")
    prefix: Literal["drop", "keep"] = Field("drop", description="class and register tokens, before the patches")
    side: int | None = Field(
        None, ge=8, le=8192, description="pixels along an edge of a tile, for convolutions, which take any")
    options: dict[str, Scalar | list[Scalar]] = Field({}, description="more arguments of timm.create_model")
    whole: bool = Field(False, description="build the blocks behind the last one read, the final norm and the head")
    mean: Colour | None = Field(None, description="normalisation of pixels in 0..1; timm's own when left out")
    std: Colour | None = Field(None, description="as `mean`; pixels less the mean are divided by it")
    activations: int = Field(1024, ge=1, description="MiB of activations at inference; more tiles go in turns")

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Colour | None) -> Colour | None:
        if std and min(std) <= 0:
            raise ValueError("pixels are divided by it; expected numbers above 0")
        return std

    @field_validator("options")
    @classmethod
    def _only_shapes(cls, options: dict[str, Any]) -> dict[str, Any]:
        if bad := sorted(name for name in options if name in _CLOSED or name.startswith("pretrained")):
            raise ValueError(f"may not set {', '.join(bad)}: weights come from the preset's `weights`")
        for name, value in options.items():
            most = _BLOCKS if re.search("depth|layers|blocks|repeats", name) else _MOST
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
            if any(abs(n) > most for n in numbers):
                raise ValueError(f"{name}: numbers are at most {most}")
        return options


class Tower(nn.Module):
    """A timm model without what lies behind the last layer that is read."""

    vit: Any
    frames = 1  # tiles that are seen together

    def __init__(self, config: Config, **more: Any) -> None:
        """more: arguments of timm.create_model that no preset may set"""
        super().__init__()
        self.vit = _make(config, more)
        info = list(self.vit.feature_info)
        layers = (config.layer,) if isinstance(config.layer, int) else config.layer
        self.read = [_index(layer, len(info)) for layer in layers]
        self.width = sum(info[i]["num_chs"] for i in self.read)
        self.side = _side(self.vit, config)
        cfg = self.vit.pretrained_cfg
        self.mean: Colour = config.mean or tuple(cfg["mean"])
        self.std: Colour = config.std or tuple(cfg["std"])
        self.in_rows = hasattr(self.vit, "num_prefix_tokens")  # tokens in a row; else a map, as of a convolution
        self.prefix: int = self.vit.num_prefix_tokens if self.in_rows and config.prefix == "keep" else 0
        self.unused = 0 if config.whole else _cut(self.vit, self.read)
        largest = max((self.side / i["reduction"]) ** 2 * i["num_chs"] for i in info)
        self.room = config.activations * MiB / (largest * _LIVE)  # tiles, times bytes of one number

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """What repeats: blocks of a transformer, stages of a convolution."""
        for name in ("blocks", "stages", "layers"):
            if (found := getattr(self.vit, name, None)) is not None:
                return list(found)
        return [module for name, module in self.vit.named_children() if name.startswith("layer")]

    def forward(self, pixels: Tensor) -> Features:
        """uint8 [tiles, 3, side, side] -> tokens [tiles, prefix + rows * cols, width]"""
        dtype = next(self.vit.parameters()).dtype
        room = self.room / dtype.itemsize * (_SHARE if pixels.device.type == "cpu" else 1)
        most = max(1, int(room) // self.frames) * self.frames
        if torch.is_grad_enabled() or pixels.is_meta or len(pixels) <= most:
            return self.look(pixels, dtype)
        even = -(-len(pixels) // self.frames // -(-len(pixels) // most)) * self.frames  # as few turns, alike in size
        return Features.collect((self.look(some, dtype) for some in torch.split(pixels, even)), len(pixels))

    def look(self, pixels: Tensor, dtype: torch.dtype) -> Features:
        """The same, all tiles at once."""
        x = normalise(pixels, self.mean, self.std).to(dtype)
        order = sorted(set(self.read))  # timm answers in this order
        ask: dict[str, Any] = {"return_prefix_tokens": True} if self.prefix else {}
        found = self.vit.forward_intermediates(
            x, indices=order, norm=False, stop_early=True, intermediates_only=True,
            output_fmt="NLC" if self.in_rows else "NCHW", **ask)
        layers = [found[order.index(i)] for i in self.read]
        if not self.in_rows:
            return Features.of_map(_join(layers, 1))
        if self.prefix:
            layers = [torch.cat([prefix, patches], dim=1) for patches, prefix in layers]
        rows, cols = self.vit.patch_embed.grid_size
        return Features(_join(layers, 2), rows, cols, self.prefix)

    def materialize(self) -> None:
        """Compute what no checkpoint holds (rotary tables of EVA, masks of Swin); call it once weights are in place.

        Needed only by a tower that was built on the meta device; a plain ViT has no such buffers.
        """
        device = next(self.vit.parameters()).device
        for module in self.vit.modules():
            lost = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
            for name, buffer in lost:
                module.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)
            if lost and hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()


def normalise(pixels: Tensor, mean: Colour, std: Colour) -> Tensor:
    """uint8 -> float32, bit for bit what transformers' processors for PIL give.   [tiles, 3, side, side]"""
    # tensors, not numbers: by a number a GPU divides with the reciprocal, which rounds twice
    top, low, spread = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
                        for v in ([255.0], mean, std))
    return pixels.float().div_(top).sub_(low).div_(spread)


def _index(layer: int, depth: int) -> int:
    """-1 .. -depth count from the end; 1 .. depth from the front, as hidden_states of transformers do."""
    if layer == 0 or abs(layer) > depth:
        raise PresetError(f"expected -{depth} to -1 or 1 to {depth}, got {layer}", where="tower.layer")
    return layer - 1 if layer > 0 else depth + layer


def _make(config: Config, more: dict[str, Any]) -> Any:
    name = config.model
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3)
        raise PresetError(f"timm has no model named {name!r}", where="tower.model",
                          hint=f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them")
    try:
        model = timm.create_model(name, pretrained=False, **{"num_classes": 0, **config.options, **more})
    except Exception as error:  # whatever a model's constructor thinks of its arguments
        raise PresetError(f"timm cannot make {name} with {config.options}: {error}", where="tower.options") from error
    if not hasattr(model, "forward_intermediates"):
        raise PresetError(f"timm gives no layers of {name}", where="tower.model", hint="choose another model")
    return model


def _cut(vit: Any, read: list[int]) -> int:
    """Delete what lies behind the last layer read; tell how many parameters that were."""
    before = _count(vit)
    vit.prune_intermediate_layers(sorted(set(read)), prune_norm=True, prune_head=True)
    return before - _count(vit)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _side(vit: Any, config: Config) -> int:
    fixed = getattr(getattr(vit, "patch_embed", None), "img_size", None)
    if config.side and fixed:
        raise PresetError(f"{config.model} has a fixed size", where="tower.side", hint="set tower.options.img_size")
    size: Any = fixed or config.side or config.options.get("img_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or vit.pretrained_cfg["input_size"][1:])
    if height != width:
        raise ShapeError(f"tiles are square, {config.model} wants {height} x {width}", where="tower")
    return int(height)


def _join(layers: list[Tensor], axis: int) -> Tensor:
    if len({layer.shape[2:] if axis == 1 else layer.shape[1] for layer in layers}) > 1:
        raise ShapeError(f"layers of different grids cannot be joined: {[tuple(x.shape[1:]) for x in layers]}",
                         where="tower.layer")
    return layers[0] if len(layers) == 1 else torch.cat(layers, dim=axis)


def build(config: Config) -> Tower:
    return Tower(config)


EXAMPLE = {"model": "vit_tiny_patch16_224", "layer": -2,
           "options": {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}}
