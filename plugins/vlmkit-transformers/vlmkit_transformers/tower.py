"""Any vision model of transformers, read at one layer or at several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, Strict, field_validator, model_validator
from torch import Tensor, nn

from vlmkit.errors import PresetError, ShapeError
from vlmkit.parts.formats.files import read_json
from vlmkit.parts.towers.timm import normalise
from vlmkit.types import Features

from .configs import Architecture
from .modules import blocks_of, materialize, weigh

Colour = Annotated[tuple[float, float, float], Strict(False)]  # a list will do: the file's numbers come as one
PREFIX = 16  # class and register tokens; more of them are something else


class Config(Architecture):
    """Which model, and where it is read."""

    place: ClassVar[str] = "tower"
    section: ClassVar[str] = "vision_config"

    layer: int | Annotated[tuple[int, ...], Strict(False)] = Field(
        -1, description="-1 is the output of the last block, 1 that of the first; of several the channels are joined")
    prefix: Literal["drop", "keep"] = Field("drop", description="class and register tokens, before the patches")
    mean: Colour = Field(description="normalisation of pixels in 0..1; a folder's preprocessor_config.json tells it")
    std: Colour = Field(description="as `mean`")

    @model_validator(mode="before")
    @classmethod
    def _colours(cls, given: Any) -> Any:
        """As the folder's own processor has them. What an architecture defaults to is often something else."""
        told = colours(Path(str(given.get("file")))) if isinstance(given, Mapping) else {}
        return {**told, **given} if told else given

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Colour) -> Colour:
        if min(std) <= 0:
            raise ValueError("pixels are divided by it; expected numbers above 0")
        return std


def colours(folder: Path) -> dict[str, Any]:
    """Mean and deviation, where a folder tells them."""
    said = read_json(folder / "preprocessor_config.json")
    return {name: said[key] for name, key in (("mean", "image_mean"), ("std", "image_std")) if said.get(key)}


class Tower(nn.Module):
    """A vision model without what lies behind the last layer that is read."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        with torch.device("meta"):
            plan = config.make("AutoModel").eval()
        self.model = config.make("AutoModel")
        self.side, self.mean, self.std = _side(self.model.config), config.mean, config.std
        self.name, blocks = blocks_of(self.model)
        self.keep, whole = config.prefix == "keep", weigh(self.model)
        layers = (config.layer,) if isinstance(config.layer, int) else config.layer
        self.read = [_index(layer, len(blocks)) for layer in layers]
        x = torch.empty(2, 3, self.side, self.side, device="meta")
        try:
            behind = _behind(plan, self.name, x)
            for model in (plan, self.model):
                for name in behind:
                    model.set_submodule(name, nn.Identity())
                del model.get_submodule(self.name)[max(self.read) + 1 :]
            self.width = self._look(plan, x).tokens.shape[2]
        except ShapeError:
            raise
        except Exception as error:
            told = f"{type(plan).__name__} cannot be read at a layer: {error}"
            raise PresetError(told, where="tower.config") from error
        self.unused = whole - weigh(self.model)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_submodule(self.name))

    def forward(self, pixels: Tensor) -> Features:
        """uint8 [tiles, 3, side, side] -> tokens [tiles, prefix + rows * cols, width]"""
        features = self._look(self.model, normalise(pixels, self.mean, self.std).to(self.model.dtype))
        if self.keep or not features.prefix:
            return features
        return features._replace(tokens=features.tokens[:, features.prefix :], prefix=0)

    def _look(self, model: Any, x: Tensor) -> Features:
        """[tiles, 3, side, side] -> the layers that are read, all their tokens"""
        seen = model(pixel_values=x, output_hidden_states=len(self.read) > 1, return_dict=True)
        one = len(self.read) == 1  # the last, behind which nothing is left
        layers = [seen.last_hidden_state] if one else [seen.hidden_states[i + 1] for i in self.read]
        return _features(layers, len(x), self.side, model.config)

    def materialize(self) -> None:
        """Compute what no checkpoint holds; needed by a tower that was built on the meta device."""
        materialize(self.model)


def _index(layer: int, depth: int) -> int:
    """-1 .. -depth count from the end; 1 .. depth from the front, as hidden_states of transformers do."""
    if layer == 0 or abs(layer) > depth:
        raise PresetError(f"expected -{depth} to -1 or 1 to {depth}, got {layer}", where="tower.layer")
    return layer - 1 if layer > 0 else depth + layer


def _side(config: Any) -> int:
    size = getattr(config, "image_size", None)
    if not (side := _edge(size)):
        raise ShapeError(f"tiles are square; {config.model_type} has an image_size of {size}", where="tower",
                         hint="set tower.config.image_size")
    return side


def _edge(size: Any) -> int:
    """14, or [14, 14] -> 14; 0 for everything else"""
    height, width = (size, size) if isinstance(size, int) else size if isinstance(size, list | tuple) else (0, 0)
    return int(height) if height == width else 0


def _behind(plan: Any, blocks: str, x: Tensor) -> list[str]:
    """Names of the modules with weights that run after the last block: final norms, poolers, heads."""
    path = blocks.split(".")
    last = f"{blocks}.{len(plan.get_submodule(blocks)) - 1}"
    ran, around = list[str](), list[str]()
    for depth, inner in enumerate(path):
        beside = plan.get_submodule(".".join(path[:depth])).named_children()
        around += [".".join([*path[:depth], name]) for name, part in beside if name != inner and weigh(part)]
    hooks = [plan.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
             for name in (*around, last)]
    with torch.no_grad():
        plan(pixel_values=x)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(ran[ran.index(last) + 1 :]))


def _features(layers: list[Tensor], tiles: int, side: int, config: Any) -> Features:
    """Layers side by side, with the grid of their patches.   each [tiles, tokens, width], or a map"""
    layers = [x.permute(0, 3, 1, 2) if x.ndim == 4 and x.shape[2] != x.shape[3] else x for x in layers]  # channels last
    if len({x.shape[2:] if x.ndim == 4 else x.shape[1] for x in layers}) > 1:
        raise ShapeError(f"layers of different grids cannot be joined: {[tuple(x.shape[1:]) for x in layers]}",
                         where="tower.layer")
    joined, patch = torch.cat(layers, 1 if layers[0].ndim == 4 else 2), _edge(getattr(config, "patch_size", 0))
    if joined.ndim == 4 and len(joined) == tiles:
        return Features.of_map(joined)
    rows = side // patch if patch else 0
    while rows * rows > joined.shape[1]:  # a stage that merged patches
        rows //= 2
    prefix = joined.shape[1] - rows * rows
    if len(joined) != tiles or not rows or prefix > PREFIX or hasattr(config, "mask_ratio"):
        told = f"{list(joined.shape)} from {tiles} tiles of {side} pixels in patches of {patch}"
        raise ShapeError(f"{told}: not rows and columns behind at most {PREFIX} class and register tokens",
                         where="tower.config")
    return Features(joined, rows, rows, prefix)


def build(config: Config) -> Tower:
    return Tower(config)


EXAMPLE = {"layer": -2, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "config": {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 16,
}}  # fmt: skip
