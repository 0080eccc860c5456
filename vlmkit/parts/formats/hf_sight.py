"""A built tower as the vision model of transformers that computes the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmkit.errors import PresetError

from .files import JSON

ACTS = {"QuickGELU": "quick_gelu", "GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}
KNOWN = {"clip_vision_model": (("quick_gelu", "gelu"), 1e-5), "siglip_vision_model": (("gelu_pytorch_tanh",), 1e-6)}
NEAREST = ("a ViT as CLIP or SigLIP have it, such as tower.model=vit_base_patch16_clip_quickgelu_224 or "
           "vit_base_patch16_siglip_224 with tower.options.act_layer=gelu_tanh")


def homeless(where: str, found: str, nearest: str, kind: str = "") -> PresetError:
    """No class of transformers means this. Says which part, and the nearest that one does."""
    return PresetError(f"{found} has no home in llava-hf" + (f" ({kind} is the nearest class)" if kind else ""),
                       where=where, hint=f"the nearest that has one: {nearest}")


def several(wrong: list[tuple[str, str, str]], kind: str) -> PresetError:
    """The same of many: path, what was found there, the nearest."""
    rows = "".join(f"\n  {where}: {found}; the nearest: {nearest}" for where, found, nearest in wrong)
    return PresetError(f"{len(wrong)} values have no home in llava-hf ({kind} is the nearest class){rows}",
                       where=", ".join(where for where, *_ in wrong))


class Sight(NamedTuple):
    """What transformers would call a tower.

    layer    the layers that are read, counted in the blocks that are written
    prefix   1 for a class token
    unbuilt  blocks that the published tower has and this one does not
    norm     width, dtype of the final norm where it was not built
    """

    config: JSON
    layer: int | list[int]
    side: int
    patch: int
    grid: int
    prefix: int
    unbuilt: int
    norm: tuple[int, torch.dtype] | None

    @classmethod
    def of(cls, tower: Any, config: Any, where: str) -> Sight:
        """A tower and its section. Raises PresetError for one that is neither CLIP's nor SigLIP's."""
        from timm.layers.attention import Attention
        from timm.models.vision_transformer import Block, VisionTransformer

        vit: Any = getattr(tower, "vit", None)
        if type(vit) is not VisionTransformer or any(type(b) is not Block or type(b.attn) is not Attention
                                                     for b in vit.blocks):
            raise homeless(f"{where}.model", type(vit).__name__, NEAREST)
        block, depth, published = vit.blocks[0], len(vit.blocks), len(vit.feature_info)
        width, patch = vit.embed_dim, vit.patch_embed.patch_size[0]
        clip = vit.cls_token is not None
        if isinstance(vit.norm_pre, nn.Identity) is clip or (vit.patch_embed.proj.bias is None) is not clip:
            found = "a class token without a norm before the blocks" if clip else "such a norm without a class token"
            raise homeless(f"{where}.model", found, NEAREST)
        kind = "clip_vision_model" if clip else "siglip_vision_model"
        act, eps = ACTS.get(type(block.mlp.act).__name__, type(block.mlp.act).__name__), block.norm1.eps
        acts, wanted = KNOWN[kind]
        if act not in acts or eps != wanted:
            raise homeless(f"{where}.options", f"{'CLIP' if clip else 'SigLIP'} with {act} and norms of {eps:g}",
                           f"{' or '.join(acts)} and norms of {wanted:g}")
        said: JSON = {
            "model_type": kind, "hidden_size": width, "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": depth, "num_attention_heads": block.attn.num_heads, "num_channels": 3,
            "image_size": tower.side, "patch_size": patch, "hidden_act": act, "layer_norm_eps": eps}  # fmt: skip
        if not clip:
            said["vision_use_head"] = False
        given = [config.layer] if isinstance(config.layer, int) else config.layer
        layers = [layer if layer > 0 else layer + published - depth for layer in given]
        norm = (width, vit.pos_embed.dtype) if isinstance(vit.norm, nn.Identity) else None
        return cls(said, layers[0] if isinstance(config.layer, int) else layers, tower.side, patch, tower.side // patch,
                   int(clip), published - depth, norm)

    def unapplied(self) -> dict[str, Tensor]:
        """Tensors that transformers builds and its features never pass through."""
        if self.norm is None:
            return {}
        width, dtype = self.norm
        return {"post_layernorm.weight": torch.ones(width, dtype=dtype),
                "post_layernorm.bias": torch.zeros(width, dtype=dtype)}

    def notes(self) -> list[str]:
        if self.norm is None:
            return []
        depth = self.config["num_hidden_layers"]
        cut = f"{depth} of {depth + self.unbuilt} blocks, the last ones never run; " if self.unbuilt else ""
        return [f"tower: {cut}post_layernorm, which transformers builds and these features never pass, is written as "
                "ones and zeros"]
