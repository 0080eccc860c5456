"""Shipped presets with every width and depth made small, a tokenizer, pictures and clips: whole models in a blink."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import vlmkit
from vlmkit.compose.bind import compose
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer as Ours

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<video>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WORDS = 320  # ids of the tokenizer: bytes, special tokens, and some pairs
VOCAB = 384  # rows of the embedding; like the published models', it has spare ones

CLIP = {"img_size": 56, "embed_dim": 16, "depth": 3, "num_heads": 2}  # 4 x 4 patches of 14 pixels
DEEP = CLIP | {"depth": 11}  # VipLLaVA reads the eleventh block from the end
SIGLIP = CLIP | {"img_size": 76}  # 5 x 5, and 6 pixels that nobody reads
DECODER = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": VOCAB}


def shrink(name: str, tower: dict[str, int], *words: str, own: bool = False) -> Any:
    """A shipped preset, small. Kinds, layers, norms, rotary base, window and bias stay what they are."""
    small = [f"tower.options.{key}={value}" for key, value in tower.items()]
    small += [f"video.{word}" for word in small] if own else []
    small += [f"decoder.{key}={value}" for key, value in DECODER.items()]
    return compose(name, *small, *words)


PRESETS: dict[str, tuple[Any, ...]] = {  # what we call it here -> how it is shrunk
    "llava": ("llava-1.5-7b", CLIP),
    "llava-crop": ("llava-1.5-7b", CLIP, "image.tiler.fit=crop"),
    "vip-llava": ("vip-llava-7b", DEEP),
    "bakllava": ("bakllava-v1", CLIP, "decoder.window=16"),
    "interleave": ("llava-interleave-qwen-0.5b", SIGLIP),
    "next": ("llava-next-vicuna-7b", CLIP),
    "next-mistral": ("llava-next-mistral-7b", CLIP),
    "next-video": ("llava-next-video-7b", CLIP),
    "onevision": ("llava-onevision-qwen2-7b", SIGLIP),
    "onevision-tied": ("llava-onevision-qwen2-0.5b", SIGLIP),
    "video-llava": ("video-llava-7b-hf", CLIP),
    "llava-video": ("llava-video-7b-qwen2", SIGLIP, "video.sampler.frames=8"),
}


@cache
def preset(name: str) -> Any:
    base, tower, *words = PRESETS[name]
    return shrink(base, tower, *words, own=name == "video-llava")


@cache
def tokenizer(bos: bool) -> str:
    """tokenizer.json of a byte-level BPE that knows the words of the prompts; Llama's begin with <s>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    said = ["A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: What is in it?"]
    made.train_from_iterator(said, trainers.BpeTrainer(
        vocab_size=WORDS, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(word, special=True, normalized=False) for word in SPECIAL]))
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made.to_str()


def bos(name: str) -> bool:
    """Qwen's tokenizers put nothing before a text, the others do."""
    return not preset(name).chat.style.startswith(("qwen", "interleave"))


def processor(name: str) -> Processor:
    return Processor(preset(name), assemble(preset(name)), Ours(tokenizer(bos(name))))


@cache
def model(name: str, seed: int = 0) -> Any:
    """Random weights that differ enough for the answers to differ, too."""
    with torch.inference_mode(False):  # it is kept for others
        made = vlmkit.build(preset(name)).eval()
        scatter(made, seed)
    return made


@torch.no_grad()
def scatter(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight anew, none of them zero or one: a norm, bias or newline that is left out shows."""
    noise = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        drawn = torch.randn(weight.shape, generator=noise)
        if weight.ndim > 1 and "embed" not in name:
            weight.copy_(drawn * weight[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            weight.copy_(1 + drawn * 0.2)
        else:
            weight.copy_(drawn * 0.4)


@cache
def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Coarse noise, stretched: edges and slopes everywhere."""
    coarse = Image.frombytes("RGB", (7, 5), random.Random(seed).randbytes(7 * 5 * 3))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def clip(frames: int, height: int = 60, width: int = 80, seed: int = 0) -> list[Image.Image]:
    return [picture(height, width, 100 * seed + i + 1) for i in range(frames)]


class Talk(NamedTuple):
    """A conversation: words by turns, and what their <image> and <video> stand for, in reading order."""

    turns: tuple[str, ...]  # user, assistant, user, ...
    media: tuple[Any, ...] = ()

    @property
    def images(self) -> list[Any]:
        return [m for m in self.media if not isinstance(m, list)]

    @property
    def clips(self) -> list[Any]:
        return [m for m in self.media if isinstance(m, list)]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As a user of vlmkit writes it: parts, and no newline round a visual."""
        media = iter(self.media)
        return [{"role": ("user", "assistant")[at % 2], "content": [*_parts(turn, media)]}
                for at, turn in enumerate(self.turns)]


def _parts(turn: str, media: Any) -> Any:
    for piece in re.split(r"\n?(<image>|<video>)\n?", turn):
        if piece in ("<image>", "<video>"):
            kind = piece[1:-1]
            yield {"type": kind, kind: next(media)}
        elif piece:
            yield {"type": "text", "text": piece}
