"""An assembled model as transformers knows models: a config that holds the preset, and a class with `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmkit.compose.bind import bind
from vlmkit.compose.nodes import parse
from vlmkit.compose.preset import Preset
from vlmkit.errors import PresetSafetyError, PromptError
from vlmkit.model.assemble import assemble
from vlmkit.model.vlm import VLM
from vlmkit.types import Batch, KVCache

from .rows import visuals

ROOM = 256  # positions a cache grows by at least


def describe(preset: Preset) -> dict[str, Any]:
    """A preset as plain data that needs no file beside it; how it was trained stays outside."""
    said = {name: value for name, value in preset.dump().items() if name in Preset.model_fields}
    chat = said["chat"]
    if chat.get("file"):
        said["chat"] = chat | {"file": None, "text": Path(chat["file"]).read_text("utf-8")}
    return said | {"tokenizer": (said["tokenizer"] or {}) | {"from": "."}, "weights": []}


def read(said: Mapping[str, Any] | None) -> Preset:
    """The preset a config holds: somebody's data, checked as every preset is, and not to open a file."""
    if not isinstance(said, Mapping):
        raise PresetSafetyError("the config holds no preset", hint="vlmkit_transformers.wrap makes one that does")
    pending: list[Any] = [said]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping) and node.get("file"):
            raise PresetSafetyError(f"asks for the file {str(node['file'])[:80]!r}", where="config.json")
        pending += node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return bind(parse(json.dumps(said, ensure_ascii=False), "config.json", line=False))


class VlmkitConfig(PretrainedConfig):  # type: ignore[misc]
    """preset  the whole model as data, as `vlmkit show` prints it"""

    model_type = "vlmkit"
    preset = None


class RowCache(Cache):  # type: ignore[misc]
    """vlmkit's cache of keys and values, one row for each sequence of a batch; it grows."""

    def __init__(self, decoder: Any, rows: int) -> None:
        super().__init__(layers=[])
        self.make: Callable[[int, int], list[KVCache]] = decoder.cache
        self.kept: list[KVCache] = self.make(rows, 0)
        self.seen = 0  # columns of the padded batch so far

    def reserve(self, lens: Tensor, columns: int) -> list[KVCache]:
        """Room for so many more positions of each row.   lens [rows]"""
        self.seen += columns
        needed, old = int((self.kept[0].lens + lens).max()), self.kept
        if needed > old[0].k.shape[1]:
            self.kept = self.make(len(lens), needed + ROOM)
            for before, after in zip(old, self.kept, strict=True):
                filled = before.k.shape[1]
                after.k[:, :filled], after.v[:, :filled] = before.k, before.v
            self.kept[0].lens.copy_(old[0].lens)
        return self.kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was.   [rows]"""
        for layer in self.kept:
            layer.k.copy_(layer.k[beam_idx])
            layer.v.copy_(layer.v[beam_idx])
        self.kept[0].lens.copy_(self.kept[0].lens[beam_idx.cpu()])


class VlmkitForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """vlm  the assembled model; its sections keep their names behind `vlm.`"""

    config_class = VlmkitConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    _supports_sdpa = True

    def __init__(self, config: VlmkitConfig, vlm: VLM | None = None) -> None:
        super().__init__(config)
        attention = "eager" if config._attn_implementation == "eager" else "auto"
        device = torch.empty(0).device  # meta, where transformers is about to fill it
        self.vlm = vlm or assemble(read(config.preset), attention, device, torch.get_default_dtype())
        for part in vlm.modules() if vlm else ():
            part._is_hf_initialized = True  # type: ignore[assignment]  # else its models would be drawn anew
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights are drawn by the parts themselves; what no checkpoint holds is computed anew."""
        compute = getattr(module, "init_non_persistent_buffers", None)  # of timm's modules
        if callable(compute):
            compute()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it makes its own

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.decoder.embed  # type: ignore[return-value]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, mm_token_type_ids: Tensor | None = None,
                pixel_values: Tensor | None = None, pixel_values_videos: Tensor | None = None,
                layouts: Tensor | None = None, labels: Tensor | None = None, past_key_values: Cache | None = None,
                use_cache: bool | None = None, logits_to_keep: int | Tensor = 0,
                **more: Any) -> CausalLMOutputWithPast:
        """What the processor makes -> logits [batch, length, vocab], and the loss when there are labels."""
        if more.get("inputs_embeds") is not None:
            raise PromptError("this model takes input_ids and pixels, no inputs_embeds")
        length = input_ids.shape[1]
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -length:]
        real = real.bool()
        lens = real.sum(1).cpu()
        seen = visuals(layouts, pixel_values=pixel_values, pixel_values_videos=pixel_values_videos)
        slots = torch.zeros_like(real)
        if seen and mm_token_type_ids is not None:  # it ends with the prompt, which may be shorter by now
            slots[:, : mm_token_type_ids.shape[1]] = mm_token_type_ids.bool()
        batch = Batch(input_ids[real], lens, slots[real].nonzero().squeeze(1), seen)
        cache = None
        if use_cache:
            cache = past_key_values if isinstance(past_key_values, RowCache) else RowCache(self.vlm.decoder, len(lens))
        hidden = self.vlm(batch, None if cache is None else cache.reserve(lens, length))
        padded = hidden.new_zeros(*real.shape, hidden.shape[1])
        padded[real] = hidden
        kept = padded[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        logits = self.vlm.logits(kept.flatten(0, 1)).unflatten(0, kept.shape[:2])
        loss = None
        if labels is not None:
            count = more.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=count)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
