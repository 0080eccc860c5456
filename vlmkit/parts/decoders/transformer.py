"""Pre-norm transformer with rotary positions and a gated MLP: Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache as remember
from itertools import repeat
from operator import add
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.contracts import AttentionBackend, PartConfig
from vlmkit.errors import ContextLengthError, ShapeError
from vlmkit.types import KVCache

from ..attention.rows import place
from .bare import Bare
from .fixed import FixedStep
from .layers import MOST, PIECE, Embedding, Linear, RMSNorm, linear, roomy, twin
from .rope import Rope, angles, frequencies, grown, rotate

FAMILIES: dict[str, dict[str, Any]] = {  # what the families differ in
    "llama": {},
    "mistral": {"window": 4096},  # what a Mistral configuration means when it does not say
    "qwen2": {"bias": True},
    "qwen3": {"norms": True},
}


@remember
def sizes() -> dict[str, dict[str, Any]]:
    """Published shapes by name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast, where libyaml is
    found: dict[str, dict[str, Any]] = yaml.load(Path(__file__).with_name("sizes.yaml").read_text("utf-8"), loader)
    return found


class Config(PartConfig):
    """A named size, shapes, or a named size with some shapes of one's own."""

    size: str | None = Field(None, description="a name in sizes.yaml; the other fields override it")
    family: Literal["llama", "mistral", "qwen2", "qwen3"] = Field(
        "llama", description="gives the defaults of bias, norms and window"
    )
    width: int = Field(ge=1, le=100_000, description="of a token")  # upper ends: no preset builds without end
    layers: int = Field(ge=1, le=1024, description="blocks")
    heads: int = Field(ge=1, le=10_000, description="heads of queries")
    kv_heads: int = Field(ge=1, le=10_000, description="heads of keys and values; `heads` when not given")
    head: int = Field(ge=2, le=10_000, multiple_of=2, description="width of a head; width / heads when not given")
    ffn: int = Field(ge=1, le=1_000_000, description="width inside the MLP")
    vocab: int = Field(ge=1, le=10_000_000, description="rows of the embedding, spare ones included")
    context: int = Field(ge=1, le=100_000_000, description="longest sequence, after stretching")
    theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    eps: float = Field(1e-6, gt=0, description="of the RMS norms")
    window: int | None = Field(None, ge=1, description="positions a token sees, itself among them; null: all")
    tied: bool = Field(False, description="the embedding is also the head")
    bias: bool = Field(False, description="on queries, keys and values")
    norms: bool = Field(False, description="an RMS norm on each head's query and key")
    rope: Rope = Field(default_factory=Rope, description="how positions are stretched")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Family, then size, then what was given; then what follows from other fields."""
        if not isinstance(given, Mapping):
            return given
        block = _block(given.get("size"))
        family = given.get("family", block.get("family", "llama"))
        merged = {**FAMILIES.get(str(family), {}), **block, **given}
        width, heads = merged.get("width"), merged.get("heads")
        if isinstance(heads, int) and heads > 0:
            merged.setdefault("kv_heads", heads)
            if isinstance(width, int) and "head" not in merged:
                if width % heads:
                    raise ValueError(f"{heads} heads do not divide a width of {width}; give `head`, the width of one")
                merged["head"] = width // heads
        return merged

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly")
        return self


def _block(size: object) -> dict[str, Any]:
    if size is None or not isinstance(size, str):
        return {}
    if size in sizes():
        return sizes()[size]
    near = "".join(f"; did you mean {name!r}?" for name in get_close_matches(size, sizes(), n=1))
    text = f"no size named {size!r}; there are: {', '.join(sizes())}{near}"
    problem = PydanticCustomError("size", "{text}", {"text": text})
    raise ValidationError.from_exception_data("size", [{"type": problem, "loc": ("size",), "input": size}])


class Attention(nn.Module):
    """Queries, keys and values around an attention backend."""

    def __init__(self, config: Config, attention: AttentionBackend, std: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head, self.window = config.heads, config.kv_heads, config.head, config.window
        wide, narrow = config.heads * config.head, config.kv_heads * config.head
        self.q = Linear(config.width, wide, std=std, bias=config.bias)
        self.k = Linear(config.width, narrow, std=std, bias=config.bias)
        self.v = Linear(config.width, narrow, std=std, bias=config.bias)
        self.o = Linear(wide, config.width, std=std / (2 * config.layers) ** 0.5)
        self.q_norm = RMSNorm(config.head, config.eps) if config.norms else None
        self.k_norm = RMSNorm(config.head, config.eps) if config.norms else None
        self.give(attention)

    def give(self, attention: AttentionBackend) -> None:
        """A backend of its own, so that what passes through it has a place in the tree."""
        own = copy.deepcopy(attention)
        if isinstance(weights := getattr(own, "weights", None), nn.Module):
            self.weights = weights  # this name comes first
        self.attend = own

    def forward(self, x: Tensor, lens: Tensor, turn: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """[total, width] -> the same"""
        narrow = len(x), self.kv_heads, self.head
        q, k, v = self.q(x).view(len(x), self.heads, self.head), self.k(x).view(narrow), self.v(x).view(narrow)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if len(x) <= MOST:  # calls take longer than their work
            q, k = rotate(torch.cat((q, k), 1), *turn).split((self.heads, self.kv_heads), 1)
        else:
            q = rotate(q, *turn)  # one after the other: what was turned is gone before the next needs room
            k = rotate(k, *turn)
        return self.o(self.attend(q, k, v, lens, cache, self.window).flatten(1))  # type: ignore[no-any-return]

    def keep(self, x: Tensor, lens: Tensor, turn: tuple[Tensor, Tensor], cache: KVCache) -> None:
        """Only what the cache gets: keys and values.   x [total, width]"""
        k, v = (layer(x).view(len(x), self.kv_heads, self.head) for layer in (self.k, self.v))
        place(rotate(k if self.k_norm is None else self.k_norm(k), *turn), v, lens, cache)


def _fixed(attend: Any) -> Callable[..., Tensor]:
    """A backend's attention over a FixedCache, called as the other one is."""
    return lambda q, k, v, lens, cache, window: attend.fixed(q, k, v, cache)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: Config, std: float) -> None:
        super().__init__()
        self.ffn = config.ffn
        self.gate = Linear(config.width, config.ffn, std=std)
        self.up = Linear(config.width, config.ffn, std=std)
        self.down = Linear(config.ffn, config.width, std=std / (2 * config.layers) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[total, width] -> the same"""
        if isinstance(self, nn.Module) or not x.is_cpu:
            return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]
        parts = x.tensor_split(max(1, len(x) * self.ffn * x.itemsize // PIECE))
        parts = [self.down(self.up(part).mul_(F.silu(self.gate(part), inplace=True))) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Block(nn.Module):
    """Attention, then MLP, each added to the stream."""

    def __init__(self, config: Config, attention: AttentionBackend, std: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.eps)
        self.attn = Attention(config, attention, std)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = MLP(config, std)

    def forward(
        self, x: Tensor, lens: Tensor, turn: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        """[total, width] -> the same   turn: cosine and sine of each position"""
        x = x + self.attn(self.attn_norm(x), lens, turn, cache)
        more: Tensor = self.mlp(self.mlp_norm(x))
        return x + more if isinstance(self, nn.Module) else x.add_(more)  # bare: nobody else holds it


class Transformer(nn.Module):
    """The decoder. Its weights start small: normal, with a deviation that follows from `width`."""

    block = Block  # what repeats; a decoder of another block is this one with that

    def __init__(self, config: Config, attention: AttentionBackend) -> None:
        super().__init__()
        self.config, self.width, self.vocab, self.context = config, config.width, config.vocab, config.context
        self.steady = config.rope.type != "dynamic"  # a position's key does not change with the sequence's length
        std = (2 / (5 * config.width)) ** 0.5  # Nguyen and Salazar 2019; about 0.02 at width 1024
        self.embed = Embedding(config.vocab, config.width, std=std)
        blocks = [self.block(config, attention, std)]
        alike = self.block is Block and self.embed.weight.is_meta
        blocks += [twin(blocks[0]) if alike else self.block(config, attention, std) for _ in range(1, config.layers)]
        for block in blocks[1:] if alike else ():
            block.attn.give(attention)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.width, config.eps)
        self._plain: Bare | None = None
        self._fixed: FixedStep | None = None
        if not config.tied:
            self.head = Linear(config.width, config.vocab, std=std)

    @property
    def brief(self) -> bool:
        """Whether `forward` takes `ends`."""
        return type(self).forward is Transformer.forward

    def cache(self, rows: int, capacity: int) -> list[KVCache]:
        """Empty, of zeros: what is masked is still multiplied by 0, which does not stop a NaN."""
        weight = self.embed.weight
        roomy()
        lens = torch.zeros(rows, dtype=torch.int64, device="cpu")

        def zeros(heads: int) -> Tensor:  # of a block: where it is split over processes, those it keeps here
            shape, like = (rows, capacity, heads, self.config.head), {"dtype": weight.dtype, "device": weight.device}
            order = (0, 2, 1, 3) if weight.is_cpu else (0, 1, 2, 3)  # a CPU reads head by head
            return torch.empty_permuted(shape, order, **like).zero_()  # type: ignore[arg-type]

        blocks: Any = self.blocks
        return [KVCache(zeros(block.attn.kv_heads), zeros(block.attn.kv_heads), lens) for block in blocks]

    def forward(self, x: Tensor, lens: Tensor, cache: list[KVCache] | None = None, ends: bool = False) -> Tensor:
        """[total, width] -> [total, width], normalised   ends: [sequences, width], the last position of each alone"""
        past = self._check(x, lens, cache)
        turn = self._turn(lens, past, x)
        blocks: Iterable[Any] = self.blocks if torch.is_grad_enabled() else self._bare()
        *before, last = zip(blocks, cache or repeat(None), strict=False)
        for block, kept in before:
            x = block(x, lens, turn, kept)
        block, kept = last
        x = self._ends(block, x, lens, turn, kept) if ends and lens.max() > 1 else block(x, lens, turn, kept)
        if cache is not None:
            cache[0].lens.add_(lens)
        return self.norm(x)  # type: ignore[no-any-return]

    def _ends(self, last: Any, x: Tensor, lens: Tensor, turn: tuple[Tensor, Tensor], kept: KVCache | None) -> Tensor:
        """What the last block makes of each sequence's end. Of other positions nobody reads more than its keys; where
        somebody watches, or put in a part of his own, it makes all of them.
        """
        own: Any = self.blocks[-1]
        at, ones = (lens.cumsum(0) - 1)[lens > 0].to(x.device), (lens > 0).long()
        if last is own or kept is None or type(own) is not Block or type(own.attn) is not Attention:
            return last(x, lens, turn, kept)[at]  # type: ignore[no-any-return]
        own.attn.keep(own.attn_norm(x), lens, turn, kept)
        there = kept._replace(lens=kept.lens + lens - ones)
        return last(x[at], ones, (turn[0][at], turn[1][at]), there)  # type: ignore[no-any-return]

    def logits(self, x: Tensor) -> Tensor:
        """[any, width] -> [any, vocab], float32"""
        return linear(x, self.embed.weight if self.config.tied else self.head.weight).float()

    def fixed(self) -> FixedStep | None:
        """A step of fixed shapes; the same one as long as the modules are. None where somebody put in their own."""
        if self._fixed is None or not self._fixed.holds:
            config, kinds = self.config, (self.block, Attention, MLP, RMSNorm, Linear)
            backends = [module.attend for module in self.blocks.modules() if isinstance(module, Attention)]
            usual = all(type(module) in kinds for block in self.blocks for module in block.modules())
            whole = Bare(self.blocks, kinds, attend=_fixed)
            if not (self.steady and usual and whole.holds and all(hasattr(attend, "fixed") for attend in backends)):
                return None
            waves = frequencies(config.head, config.theta, config.rope, config.context, self.embed.weight.device)
            self._fixed = FixedStep(whole, self.embed, waves, config.window, lambda x: self.logits(self.norm(x)))
        return self._fixed

    def _bare(self) -> Iterable[Callable[..., Any]]:
        """The blocks, without what a module's call costs; with it while somebody watches."""
        if self._plain is None or not self._plain.holds:
            self._plain = Bare(self.blocks, (self.block, Attention, MLP, RMSNorm, Linear))
        return self._plain.blocks if self._plain.holds else self.blocks

    def _check(self, x: Tensor, lens: Tensor, cache: list[KVCache] | None) -> Tensor:
        """How many positions each sequence already has."""
        counts = lens.tolist()
        if sum(counts) != len(x):
            raise ShapeError(f"lens sum to {sum(counts)} but there are {len(x)} tokens")
        if cache is None:
            return torch.zeros_like(lens)
        past, capacity = cache[0].lens.tolist(), cache[0].k.shape[1]
        if len(past) != len(counts):
            raise ShapeError(f"{len(counts)} lens for a cache of {len(past)} rows; 0 leaves a row alone")
        if (longest := max(map(add, past, counts), default=0)) > capacity:
            text = f"a sequence of {longest} tokens does not fit a cache of {capacity}"
            raise ContextLengthError(text, limit=capacity, got=longest)
        return cache[0].lens

    def _turn(self, lens: Tensor, past: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every token's position, as `rotate` takes them.   [total, 1, head], dtype of `like`"""
        config, device = self.config, like.device
        if len(like) == len(lens) and 0 not in lens.tolist():  # a token for everybody
            positions, ends = past, past + 1
        else:
            start = (past - lens.cumsum(0) + lens).repeat_interleave(lens)
            positions, ends = torch.arange(len(start), device="cpu") + start, (past + lens).repeat_interleave(lens)
        if config.rope.type == "dynamic":
            waves = grown(config.head, config.theta, config.rope, config.context, ends.to(device))
        else:
            waves = frequencies(config.head, config.theta, config.rope, config.context, device)
        return angles(positions.to(device), waves, like.dtype)


def build(config: Config, *, attention: AttentionBackend) -> Transformer:
    return Transformer(config, attention)


EXAMPLE: dict[str, object] = {
    "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 64, "context": 128,
}  # fmt: skip
