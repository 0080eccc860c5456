"""Any language model of transformers whose layers are causal attention, on rows without padding."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import AttentionMaskInterface

from vlmkit.contracts import AttentionBackend
from vlmkit.errors import ContextLengthError, PresetError, ShapeError
from vlmkit.types import KVCache

from .configs import Architecture
from .modules import blocks_of, materialize

OURS, PROBE = "vlmkit", "vlmkit_probe"  # names of attention implementations, in transformers' own tables
PLAIN = {"sliding_window", "position_ids", "is_causal", "use_cache", "output_attentions", "output_hidden_states",
         "return_dict"}  # what our backends need not be told, or know already
STRETCHED = ("dynamic", "longrope")  # their positions turn by the length of the whole sequence


class Config(Architecture):
    """Which model."""

    place: ClassVar[str] = "decoder"
    section: ClassVar[str] = "text_config"


_looking: ContextVar[Any] = ContextVar("looking", default=None)  # for models that keep arguments to themselves


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None,
              scaling: float | None = None, dropout: float = 0.0, vlmkit: Any = None, **more: Any
              ) -> tuple[Tensor, None]:
    """What transformers' layers call.   query [1, heads, total, head] -> [1, total, heads, head]"""
    look = vlmkit or _looking.get()
    if look is None:
        raise ShapeError(f"{type(module).__name__} runs outside of its decoder, which alone knows the rows")
    return look(module, (query, key, value), attention_mask, scaling, dropout, more), None


def see(mask_function: Any, config: Any, **_: Any) -> Tensor:
    """A stand-in for a mask, which knows how many positions back a query sees, itself among them; None: all."""
    last = int(config.max_position_embeddings) - 1

    def span(query: int) -> int:
        seen = torch.as_tensor(mask_function(0, 0, torch.tensor(query), torch.arange(last + 1))).expand(last + 1)
        count = int(seen.sum())
        return count if bool(seen[query + 1 - count : query + 1].all()) else 0

    with torch.device("cpu"):
        spans, mark = (span(last), span(last - 1)), torch.empty(0)
    if spans == (last + 1, last) or (spans[0] == spans[1] and spans[0]):
        mark.window = spans[0] if spans[0] == spans[1] else None  # type: ignore[attr-defined]
    return mark  # without a window: neither causal nor a window that slides


def run(model: Any, look: Any, **given: Tensor) -> Tensor:
    """A model below its head, whose layers call `look` for their attention.   [1, total, width] -> [total, width]"""
    token = _looking.set(look)
    try:
        return model(use_cache=False, vlmkit=look, **given).last_hidden_state[0]  # type: ignore[no-any-return]
    finally:
        _looking.reset(token)


transformers.AttentionInterface.register(OURS, attention)
transformers.AttentionInterface.register(PROBE, attention)
AttentionMaskInterface.register(PROBE, see)  # none under OURS: our backends need no mask


class Seen(NamedTuple):
    """The attention of one layer, as a run on the meta device met it."""

    name: str
    key: tuple[int, int]  # heads, and their width
    value: tuple[int, int]
    window: int | None


class Attend(nn.Module):
    """One layer's attention: by the backend, or as the model's own file writes it out when the backend cannot."""

    def __init__(self, backend: AttentionBackend, slot: int, window: int | None) -> None:
        super().__init__()
        self.attn, self.slot, self.window = copy.deepcopy(backend), slot, window

    def forward(self, module: nn.Module, given: tuple[Tensor, ...], lens: Tensor, cache: KVCache | None,
                scaling: float | None, dropout: float, more: dict[str, Any]) -> Tensor:
        """[1, heads, total, head] three times -> [1, total, heads, head]"""
        q, k, v = (x[0].transpose(0, 1) for x in given)
        told = {name: value for name, value in more.items() if value is not None and name not in PLAIN}
        if told or dropout or k.shape[-1] != v.shape[-1]:
            told |= {"scaling": scaling, "dropout": dropout}
            return self.write_out(module, (q, k, v), lens, cache, told)[None]
        usual = q.shape[-1] ** -0.5
        if scaling is not None and abs(scaling - usual) > 1e-9:
            q = q * (scaling / usual)
        return self.attn(q, k, v, lens, cache, self.window)[None]

    def write_out(self, module: nn.Module, given: tuple[Tensor, ...], lens: Tensor, cache: KVCache | None,
                  told: dict[str, Any]) -> Tensor:
        """One sequence after the other: soft caps, sinks, drop-out.   [total, heads, head] three times -> the first"""
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise ShapeError(f"{type(module).__name__} wants {', '.join(told)}, and writes no attention out for it")
        pasts = cache.lens.tolist() if cache is not None else [0] * len(lens)
        out, start = [], 0
        for row, (count, past) in enumerate(zip(lens.tolist(), pasts, strict=True)):
            q, k, v = (x[start : start + count] for x in given)
            start += count
            if not count:
                continue
            if cache is not None:
                cache.k[row, past : past + count], cache.v[row, past : past + count] = k, v
                k, v = cache.k[row, : past + count], cache.v[row, : past + count]
            behind = torch.arange(past, past + count)[:, None] - torch.arange(past + count)
            hidden = (behind < 0) | (behind >= (self.window or past + count))
            mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, torch.finfo(q.dtype).min).to(q.device)
            seen, _ = eager(module, *(x.transpose(0, 1)[None] for x in (q, k, v)), mask[None, None], **told)
            out.append(seen[0])
        return torch.cat(out)


class Echoed(tuple[Tensor]):
    """What a model below a head gives, of which only the first is anything."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


class Echo(nn.Module):
    """In the place of a model below its head: gives back what it is given, so that the head can be asked alone."""

    @property
    def decoder(self) -> Echo:
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Echoed:
        """[1, any, width] -> the same"""
        return Echoed((inputs_embeds,))


class Tied(nn.Module):
    """A head without weights of its own."""

    def __init__(self, embed: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self.embed: tuple[Any] = (embed,)  # in a tuple it is no child, and stands in a checkpoint once

    def forward(self, x: Tensor) -> Tensor:
        """[any, width] -> [any, vocab]"""
        return F.linear(x, self.embed[0].weight, self.bias)


class Decoder(nn.Module):
    """model: everything up to the final norm, under transformers' own names; head: what makes logits of it."""

    unquantized = ("gate", "router", "shared_expert_gate")  # which experts speak is decided with whole numbers

    def __init__(self, config: Config, backend: AttentionBackend) -> None:
        super().__init__()
        seen = glimpse(config)
        self.head = config.make("AutoModelForCausalLM", attn_implementation=OURS)
        name = below(self.head)
        self.model, out = getattr(self.head, name), self.head.get_output_embeddings()
        if self.head.all_tied_weights_keys:  # what transformers itself goes by; while it loads, nothing is tied yet
            self.head.set_output_embeddings(Tied(self.embed, getattr(out, "bias", None)))
        setattr(self.head, name, Echo())
        self.vocab, self.width = self.embed.weight.shape
        self.context = reach(self.model.config)
        self.steady = not any(kind in str(self.model.config.to_dict().get("rope_parameters")) for kind in STRETCHED)
        self.shapes = [(one.key, one.value) for one in seen]
        for slot, one in enumerate(seen):
            self.model.get_submodule(one.name).vlmkit = Attend(backend, slot, one.window)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(blocks_of(self.model)[1])

    @property
    def embed(self) -> Any:
        """The embedding: [total] -> [total, width]"""
        return self.model.get_input_embeddings()

    def cache(self, rows: int, capacity: int) -> list[KVCache]:
        """Empty, of zeros: what is masked is still multiplied by 0, which does not stop a NaN."""
        weight, lens = self.embed.weight, torch.zeros(rows, dtype=torch.int64, device="cpu")
        return [KVCache(weight.new_zeros(rows, capacity, *key), weight.new_zeros(rows, capacity, *value), lens)
                for key, value in self.shapes]

    def forward(self, x: Tensor, lens: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """[total, width] -> [total, width], normalised"""
        past = self._check(x, lens, cache)
        start = (past - lens.cumsum(0) + lens).repeat_interleave(lens)
        positions = (torch.arange(len(start), device="cpu") + start).to(x.device)

        def look(module: Any, given: tuple[Tensor, ...], mask: Any, scaling: Any, dropout: float, more: Any) -> Tensor:
            layer = None if cache is None else cache[module.vlmkit.slot]
            return module.vlmkit(module, given, lens, layer, scaling, dropout, more)  # type: ignore[no-any-return]

        hidden = run(self.model, look, inputs_embeds=x[None], position_ids=positions[None])
        if cache is not None:
            cache[0].lens.add_(lens)
        return hidden

    def logits(self, x: Tensor) -> Tensor:
        """[any, width] -> [any, vocab], float32; scaled and capped as the model does it"""
        return self.head(inputs_embeds=x[None], use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def materialize(self) -> None:
        """Compute what no checkpoint holds; needed by a decoder that was built on the meta device."""
        materialize(self.model)

    def _check(self, x: Tensor, lens: Tensor, cache: list[KVCache] | None) -> Tensor:
        """How many positions each sequence already has."""
        if int(lens.sum()) != x.shape[0]:
            raise ShapeError(f"lens sum to {int(lens.sum())} but there are {x.shape[0]} tokens")
        past = torch.zeros_like(lens) if cache is None else cache[0].lens
        if past.shape != lens.shape:
            raise ShapeError(f"{len(lens)} lens for a cache of {len(past)} rows; 0 leaves a row alone")
        capacity = self.context if cache is None else min(self.context, cache[0].k.shape[1])
        if (longest := int((past + lens).max())) > capacity:
            raise ContextLengthError(f"a sequence of {longest} tokens does not fit into {capacity}", limit=capacity,
                                     got=longest)
        return past

    def _apply(self, fn: Any, recurse: bool = True) -> Decoder:
        """A change of dtype leaves rotary tables alone: positions need float32."""
        kept = [(part, name, b) for part in self.modules() for name, b in part.named_buffers(recurse=False)
                if name in part._non_persistent_buffers_set and b.is_floating_point() and not b.is_meta]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, name, before in kept:
            part._buffers[name] = before.to(getattr(part, name).device)
        return self


def glimpse(config: Config) -> list[Seen]:
    """Run the model on the meta device, once, and note what each layer asks of attention."""
    with torch.device("meta"):
        whole = config.make("AutoModelForCausalLM", attn_implementation=PROBE).eval()
    kind, seen = type(whole).__name__, list[Seen]()
    model = getattr(whole, below(whole))
    for part in model.modules():
        if isinstance(getattr(part, "rope_type", None), str):
            part.rope_type = "default"  # one that stretches looks at values, which meta has none of
    names = {part: name for name, part in model.named_modules()}

    def look(module: nn.Module, given: tuple[Tensor, ...], mask: Any, *_: Any) -> Tensor:
        q, k, v = given
        if not hasattr(mask, "window") or not getattr(module, "is_causal", True):
            raise ShapeError("its attention is not plainly causal")
        seen.append(Seen(names[module], (k.shape[1], k.shape[3]), (v.shape[1], v.shape[3]), mask.window))
        return q.new_empty(1, q.shape[2], q.shape[1], v.shape[3])

    try:
        if getattr(whole, "_is_stateful", False):
            raise ShapeError("it keeps a state that is no keys and values")
        x = torch.empty(1, 3, model.get_input_embeddings().weight.shape[1], device="meta")
        with torch.no_grad(), torch.device("meta"):
            run(model, look, inputs_embeds=x, position_ids=torch.arange(3)[None], attention_mask=torch.ones(1, 3))
        blocks = len(blocks_of(model)[1])
        if len({one.name for one in seen}) != len(seen) or len(seen) != blocks:
            raise ShapeError(f"{blocks} blocks, of which {len(seen)} attend")
    except Exception as error:
        raise PresetError(f"{kind} cannot run on rows of tokens: {error}", where="decoder.config") from error
    return seen


def below(whole: Any) -> str:
    """What a model with a head calls the model without."""
    for name in (whole.base_model_prefix, "model"):
        if name and isinstance(getattr(whole, name, None), nn.Module):
            return str(name)
    raise PresetError(f"{type(whole).__name__} has no model below its head", where="decoder.config")


def reach(config: Any) -> int:
    """The longest sequence. Rotary tables that stretch with the longest of a batch end where they begin to."""
    rope, most = getattr(config, "rope_parameters", None) or {}, getattr(config, "max_position_embeddings", None)
    if rope.get("rope_type") == "longrope":
        most = rope["original_max_position_embeddings"]
    if not isinstance(most, int):
        raise PresetError(f"{config.model_type} names no longest sequence", where="decoder.config",
                          hint="set decoder.config.max_position_embeddings")
    return most


def build(config: Config, *, attention: AttentionBackend) -> Decoder:
    return Decoder(config, attention)


EXAMPLE = {"config": {
    "model_type": "olmo2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 128,
}}  # fmt: skip
