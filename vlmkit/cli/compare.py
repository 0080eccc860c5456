"""Does an export answer as the model it was made from? Token counts, logits and greedy text, on a drawn picture."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import vlmkit
from vlmkit.compose.bind import compose
from vlmkit.errors import WeightsError
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor

if TYPE_CHECKING:
    from vlmkit.model.vlm import VLM

LAST = 8  # positions whose logits are compared
SAID = 16  # greedy tokens
FRAMES = 4
LIKE = {torch.float32: 1e-4, torch.float64: 1e-4}  # share of the largest logit; half types round in another order
HALF = 5e-2
Messages = list[dict[str, Any]]


class Heard(NamedTuple):
    """What one engine made of a question.   logits [last positions, vocab]"""

    tokens: int
    logits: Tensor
    text: str


class Row(NamedTuple):
    """One comparison."""

    question: str
    by: str
    tokens: tuple[int, int]
    logits: float | None  # how far apart; None where they cannot be compared
    text: tuple[str, str]
    good: bool


def questions(model: VLM) -> dict[str, Messages]:
    """One picture, and one clip where the model takes them."""
    side = model.tower.side
    said: dict[str, Messages] = {}
    if model.image is not None:
        said["picture"] = _ask("image", draw(side * 3 // 2, side))
    if model.video is not None:
        said["clip"] = _ask("video", [draw(side, side, i) for i in range(FRAMES)])
    return said


def draw(width: int, height: int, at: int = 0) -> Image.Image:
    """A slope of colours, a disc and a line."""
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    pen, step = ImageDraw.Draw(picture), width // 8
    pen.ellipse((step * (at + 1), step, step * (at + 4), step * 4), fill=(200, 40, 40))
    pen.line((0, height, width, step * at), fill=(20, 90, 220), width=max(2, height // 40))
    return picture


def listen(model: VLM, processor: Any, asked: dict[str, Messages]) -> dict[str, Heard]:
    """Our own answers, to what the model has a stream for."""
    if model.video is not None:  # as many frames as are drawn
        preset = compose(processor.preset, f"video.sampler={{use: uniform, frames: {FRAMES}}}")
        processor = Processor(preset, assemble(preset), processor.tokenizer)
    heard = {}
    for name, messages in asked.items():
        if (model.image if name == "picture" else model.video) is None:
            continue
        batch = processor(messages)
        with torch.inference_mode():
            logits = model.logits(model(batch)[-LAST:])
        heard[name] = Heard(len(batch.ids), logits, vlmkit.generate(model, processor, messages, max_new_tokens=SAID))
    return heard


def compare(folder: Path, asked: dict[str, Messages], heard: dict[str, Heard]) -> list[Row]:
    """What the export answers in vlmkit, and in transformers where that is installed, beside what was heard before."""
    model, processor = vlmkit.load(folder)
    like = LIKE.get(next(model.parameters()).dtype, HALF)
    found = {("vlmkit", name): one for name, one in listen(model, processor, asked).items()}
    del model
    if importlib.util.find_spec("transformers"):
        found |= {("transformers", name): one for name, one in theirs(folder, asked, processor).items()}
    return [_row(name, by, heard[name], one, like) for (by, name), one in found.items() if name in heard]


def theirs(folder: Path, asked: dict[str, Messages], processor: Processor) -> dict[str, Heard]:
    """The answers of transformers; as we do, without rows that no token has, and up to the strings that end one.

    Raises WeightsError where it misses tensors or finds too many.
    """
    auto: Any = importlib.import_module("transformers")
    auto.logging.disable_progress_bar()
    auto.logging.set_verbosity_error()
    model, told = auto.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if wrong := {kind: sorted(map(str, names)) for kind, names in told.items() if names}:
        raise WeightsError("; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in wrong.items()), where=folder)
    reader = auto.AutoProcessor.from_pretrained(folder)
    spare = list(range(processor.tokenizer.size, model.config.get_text_config().vocab_size))
    reader.image_processor = auto.AutoImageProcessor.from_pretrained(folder, backend="pil")  # as vlmkit resizes
    heard = {}
    for name, messages in asked.items():
        if name == "clip" and not hasattr(reader, "video_processor"):
            continue
        read = reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                                          return_tensors="pt", processor_kwargs={"do_sample_frames": False})
        if "pixel_values_images" in read:  # Video-LLaVA's old name
            read["pixel_values"] = read.pop("pixel_values_images")
        read = read.to(dtype=model.dtype)
        length = read["input_ids"].shape[1]
        with torch.inference_mode():
            logits = model(**read, logits_to_keep=LAST).logits[0]
            answer = model.generate(**read, max_new_tokens=SAID, do_sample=False, suppress_tokens=spare or None)
        text = reader.decode(answer[0, length:], skip_special_tokens=True)
        ended = min((text.partition(stop)[0] for stop in processor.stop_strings), key=len, default=text)
        heard[name] = Heard(length, logits.float(), ended)
    return heard


def line(row: Row) -> tuple[str, ...]:
    """A row as people read it."""
    same = "the same" if row.text[0] == row.text[1] else f"{row.text[0][:30]!r} became {row.text[1][:30]!r}"
    count = f"{row.tokens[0]:,}" if row.tokens[0] == row.tokens[1] else f"{row.tokens[0]:,} became {row.tokens[1]:,}"
    apart = "of another shape" if row.logits is None else f"{row.logits:.1e} apart"
    return row.question, row.by, count, apart, same


def _row(name: str, by: str, before: Heard, now: Heard, like: float) -> Row:
    known = before.logits.shape[1]  # an export may have more rows, for new tokens
    alike = len(before.logits) == len(now.logits) and now.logits.shape[1] >= known
    apart = (before.logits - now.logits[:, :known]).abs().max().item() if alike else None
    same = before.text == now.text or (like == HALF and by != "vlmkit")  # near ties fall either way in half types
    close = apart is not None and apart <= like * max(1.0, before.logits.abs().max().item())
    good = before.tokens == now.tokens and close and same
    return Row(name, by, (before.tokens, now.tokens), apart, (before.text, now.text), good)


def _ask(kind: str, shown: Any) -> Messages:
    return [{"role": "user", "content": [{"type": kind, kind: shown}, {"type": "text", "text": "What is shown here?"}]}]
