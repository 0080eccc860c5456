"""The same random weights on both sides: models of transformers and of vlmkit for the five families, in some sizes.

    two = pair("onevision", "small", torch.bfloat16)
    two.model, two.processor        vlmkit's
    two.theirs, two.read(talks)     transformers' model, and its inputs for conversations
    two.answer(talks, 16), two.their_answer(talks, 16)      the whole of generate, as lists of ids

Families, conversations and tensor names are those of tests/parity. Nothing ends an answer but its length.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from measure import Bench
from transformers.initialization import no_init_weights

import vlmkit
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
import small
import theirs
from small import Talk, picture

FAMILIES = ("llava", "next", "next-video", "onevision", "video-llava")
CONTEXT = 16384


class Shape(NamedTuple):
    """Widths and depths, of the tower (before it is cut) and of the decoder."""

    tower: tuple[int, int, int]  # width, depth, heads
    sides: tuple[int, int]  # pixels of a tile: CLIP, SigLIP
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool = False


SIZES = {
    "tiny": Shape((64, 3, 2), (56, 76), 128, 4, 4, 2, 256, 1024),  # shows overhead
    "small": Shape((768, 12, 12), (336, 384), 1024, 12, 16, 16, 2816, 32064),  # 85 + 220 million
    "0.5b": Shape((1152, 26, 16), (336, 384), 896, 24, 14, 2, 4864, 152000, tied=True),
    "7b": Shape((1024, 24, 16), (336, 384), 4096, 32, 32, 32, 11008, 32064),
    "mixed": Shape((1024, 2, 16), (336, 384), 512, 8, 8, 8, 1536, 1024),  # all light, the reader at full width
}


class Pair(NamedTuple):
    family: str
    shape: Shape
    model: Any
    processor: Processor
    theirs: Any
    reader: Any

    @property
    def side(self) -> int:
        return _side(self.family, self.shape)

    def read(self, talks: list[Talk]) -> dict[str, torch.Tensor]:
        """Conversations as transformers' model takes them: padded on the left, on the model's device."""
        texts = [theirs.prompt(small.preset(self.family).chat.style, talk.turns) for talk in talks]
        images: list[Any] = [image for talk in talks for image in talk.images]
        if self.family == "onevision":
            images = [talk.images for talk in talks if talk.images]  # pictures of one conversation are not tiled
        clips = [torch.stack([theirs._raw(frame) for frame in frames]) for talk in talks for frames in talk.clips]
        made = self.reader(text=texts, images=images or None, padding=True, return_tensors="pt",
                           **({"videos": clips} if clips else {}))
        if "pixel_values_images" in made:  # Video-LLaVA's processor still writes the old name
            made["pixel_values"] = made.pop("pixel_values_images")
        kind = self.theirs.dtype
        return {name: value.to(self.theirs.device, kind if value.is_floating_point() else None)
                for name, value in made.items()}

    def answer(self, talks: list[Talk], new: int, **wishes: Any) -> list[list[int]]:
        """vlmkit: pictures and words to ids."""
        said = vlmkit.generate(self.model, self.processor, [talk.messages for talk in talks], max_new_tokens=new,
                               ignore_eos=True, details=True, **wishes)
        return [one.ids for one in said]

    def their_answer(self, talks: list[Talk], new: int, **wishes: Any) -> list[list[int]]:
        """transformers: the same. `wishes` such as cache_implementation="static" go to its generate."""
        batch = self.read(talks)
        with torch.inference_mode():
            ids = self.theirs.generate(**batch, max_new_tokens=new, do_sample=False, **wishes)
        return [row.tolist() for row in ids[:, batch["input_ids"].shape[1]:]]

    def check(self, talks: list[Talk], share: float = 0.1) -> None:
        """Logits behind the prompts differ by no more than a share of their spread: for dtypes that round."""
        with torch.inference_mode():
            batch = self.processor([talk.messages for talk in talks]).to(self.theirs.device)
            ends = (batch.lens.cumsum(0) - 1).to(self.theirs.device)
            ours = self.model.logits(self.model(batch)[ends])
            read = self.read(talks)
            places = (read["attention_mask"].cumsum(1) - 1).clamp(min=0)
            found = self.theirs(**read, position_ids=places, logits_to_keep=1).logits[:, -1].float()
        torch.testing.assert_close(ours, found, rtol=0, atol=share * float(found.std()))

    def ask(self, *sizes: tuple[int, int], words: str = "What is in it?", seed: int = 1) -> Talk:
        """A question about pictures of these heights and widths."""
        shown = tuple(picture(*size, seed + i) for i, size in enumerate(sizes))
        return Talk(("<image>\n" * len(shown) + words,), shown)

    def ask_clip(self, frames: int = 8, words: str = "What is in it?", seed: int = 1) -> Talk:
        """A question about a clip whose frames are as large as a tile: resizing is no part of it, values are equal."""
        return Talk(("<video>\n" + words,), (small.clip(frames, self.side, self.side, seed),))


def pair(family: str, size: str | Shape = "tiny", dtype: torch.dtype = torch.float32, device: str = "cpu",
         seed: int = 1) -> Pair:
    """Both sides on the same memory where names and shapes allow: the decoder's weights are there once."""
    shape = SIZES[size] if isinstance(size, str) else size
    their_model = _theirs(family, shape, dtype, device, seed)
    plan, words = preset(family, shape), _words(small.bos(family), shape.vocab)
    model = assemble(plan)
    state = theirs.rename(their_model.state_dict())
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    for part in model.modules():
        if callable(compute := getattr(part, "materialize", None)):
            compute()
    processor = Processor(plan, assemble(plan), Tokenizer(words))
    return Pair(family, shape, model.eval(), processor, their_model, reader(family, shape))


def _side(family: str, shape: Shape) -> int:
    if family == "onevision":
        return shape.sides[1]
    return min(shape.sides[0], 224) if family == "video-llava" else shape.sides[0]


def preset(family: str, shape: Shape) -> Any:
    """The family's published preset with the widths and depths of a shape."""
    width, depth, heads = shape.tower
    tower = {"img_size": _side(family, shape), "embed_dim": width, "depth": depth, "num_heads": heads}
    given = [f"tower.options.{key}={value}" for key, value in tower.items()]
    given += [f"video.{word}" for word in given] if family == "video-llava" else []
    names = ("width", "layers", "heads", "kv_heads", "ffn", "vocab")
    given += [f"decoder.{name}={getattr(shape, name)}" for name in names]
    given += [f"decoder.head={shape.width // shape.heads}", f"decoder.context={CONTEXT}",
              f"decoder.tied={str(shape.tied).lower()}"]
    return vlmkit.compose(small.PRESETS[family][0], *given)


def their_build(family: str, shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu",
                drawn: bool = False) -> Any:
    """transformers' model of a shape; with `drawn` as its own initialisation draws it, else of any weights."""
    whole = theirs.configuration(family)
    side, (width, depth, heads) = _side(family, shape), shape.tower
    ratio = 4304 / 1152 if family == "onevision" else 4
    whole.vision_config = _again(
        whole.vision_config, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=side,
        intermediate_size=int(width * ratio))
    whole.text_config = _again(
        whole.text_config, hidden_size=shape.width, num_hidden_layers=shape.layers, vocab_size=shape.vocab,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.ffn,
        max_position_embeddings=CONTEXT, tie_word_embeddings=shape.tied)
    whole.tie_word_embeddings = shape.tied
    if hasattr(whole, "image_grid_pinpoints"):
        whole.image_grid_pinpoints = _grids(whole.image_grid_pinpoints, side)
    made = next((made for key, made in theirs.CLASSES.items() if family.startswith(key)),
                transformers.LlavaForConditionalGeneration)
    with nullcontext() if drawn else no_init_weights(), torch.device(device):
        return made._from_config(whole, dtype=dtype).eval()


def _theirs(family: str, shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Any:
    model = their_build(family, shape, dtype, device)
    model.tie_weights()
    draw(model, seed)
    model.generation_config.eos_token_id = None  # so many tokens, whatever they are
    return model.requires_grad_(False)


def _again(config: Any, **changes: Any) -> Any:
    """A configuration anew, so that what follows from a changed field follows."""
    given = copy.deepcopy(config.to_dict())
    for name in ("head_dim", "layer_types"):
        given.pop(name, None)
    return type(config).from_dict(given | changes)


def _grids(given: list[list[int]], side: int) -> list[list[int]]:
    least = min(min(pair) for pair in given)
    return [[height // least * side, width // least * side] for height, width in given]


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> None:
    """Every weight anew where it lies, as tests/parity/small.py does: none is zero or one, answers differ."""
    for at, (name, weight) in enumerate(sorted(model.named_parameters())):
        noise = torch.Generator(weight.device).manual_seed(1000 * seed + at)
        if weight.ndim > 1 and "embed" not in name:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=noise)
        elif "norm" in name and name.endswith("weight"):
            weight.normal_(1, 0.2, generator=noise)
        else:
            weight.normal_(0, 0.4, generator=noise)


@cache
def _words(bos: bool, vocab: int) -> str:
    """A tokenizer that knows whole words of the prompts, with as many tokens as the decoder has rows: each id is text.

    With published tokenizers prompts are of about the same length.
    """
    made = small.Tokenizer.from_str(small.tokenizer(bos))
    said = [theirs.prompt(style, ("What is in it? And this one, which is wide? Tell me a story.",))
            for style in ("vicuna_v1", "qwen_1_5", "llava_v0")]
    made.train_from_iterator(said, small.trainers.BpeTrainer(
        vocab_size=min(vocab, 1024), show_progress=False, initial_alphabet=small.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[small.AddedToken(word, special=True, normalized=False) for word in small.SPECIAL]))
    whole = json.loads(made.to_str())
    for number in range(made.get_vocab_size(), vocab):
        whole["model"]["vocab"][f" {number}"] = number
    return json.dumps(whole)


def reader(family: str, shape: Shape, fast: bool = False) -> Any:
    """transformers' processor: pictures by PIL, whose values equal ours; `fast` by torchvision, its default."""
    side, grids = _side(family, shape), theirs.configuration(family)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=theirs.Tokenizer.from_str(_words(small.bos(family), shape.vocab)), pad_token="<pad>",
        padding_side="left")
    given: dict[str, Any] = {"tokenizer": words, "patch_size": 14, "num_additional_image_tokens": 1,
                             "vision_feature_select_strategy": "default"}
    squash: dict[str, Any] = {"size": {"height": side, "width": side}}
    pinned: dict[str, Any] = {}
    if hasattr(grids, "image_grid_pinpoints"):
        pinned = {"image_grid_pinpoints": _grids(grids.image_grid_pinpoints, side)}
    match family:
        case "llava":
            kind = transformers.LlavaImageProcessor if fast else theirs.LlavaImageProcessorPil
            return transformers.LlavaProcessor(image_processor=theirs.square(kind, side, do_pad=True), **given)
        case "next" | "next-video":
            kind = transformers.LlavaNextImageProcessor if fast else theirs.LlavaNextImageProcessorPil
            tiles = theirs.square(kind, side, **pinned)
            if family == "next":
                return transformers.LlavaNextProcessor(image_processor=tiles, **given)
            video = theirs.square(transformers.LlavaNextVideoVideoProcessor, side, do_sample_frames=False)
            return transformers.LlavaNextVideoProcessor(video, tiles, **given)
        case "onevision":
            kind = transformers.LlavaOnevisionImageProcessor if fast else theirs.LlavaOnevisionImageProcessorPil
            tiles = kind(**squash, **pinned, image_mean=theirs.HALF, image_std=theirs.HALF)
            video = transformers.LlavaOnevisionVideoProcessor(
                **squash, do_sample_frames=False, image_mean=theirs.HALF, image_std=theirs.HALF)
            return transformers.LlavaOnevisionProcessor(
                tiles, words, video, num_image_tokens=(side // 14) ** 2, vision_feature_select_strategy="full")
        case "video-llava":
            video = theirs.square(transformers.VideoLlavaVideoProcessor, side, do_sample_frames=False)
            return transformers.VideoLlavaProcessor(
                theirs.square(transformers.VideoLlavaImageProcessor, side), video, **given)
    raise KeyError(family)


def sweep(stage: str, about: str | None, cells: Callable[[Bench, str, torch.dtype], None]) -> None:
    """A stage of the decoder alone, in the sizes and dtypes that suit the device, or those that were asked for."""
    def more(ask: Any) -> None:
        ask.add_argument("--size", action="append", help="tiny, small; on a GPU 0.5b, 7b; may be repeated")
        ask.add_argument("--dtype", action="append", help="float32, bfloat16; may be repeated")

    bench = Bench(stage, about, more)
    gpu = bench.options.device != "cpu"
    sizes = ["0.5b", "7b"] if gpu else ["tiny"] if bench.options.quick else ["tiny", "small"]
    for size in bench.options.size or sizes:
        for dtype in bench.options.dtype or (["bfloat16"] if gpu else ["float32", "bfloat16"]):
            cells(bench, size, getattr(torch, dtype))
    bench.end()


def same_ids(ours: Any, theirs: Any) -> None:
    """For Bench.row: answers that differ are no answers."""
    if ours != theirs:
        at = next((i, j) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
                  for j, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        raise AssertionError(f"answer {at[0]} differs from token {at[1]} on: {ours[at[0]]} and {theirs[at[0]]}")


def close(tolerance: float) -> Any:
    """For Bench.row: tensors within a tolerance."""
    return lambda ours, theirs: torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
