"""vlmkit's processor as transformers knows processors, and the pair of model and processor."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from vlmkit.errors import PlaceholderError, PromptError
from vlmkit.model.assemble import assemble
from vlmkit.model.rehearse import count
from vlmkit.model.vlm import VLM
from vlmkit.processing import conversation as talk
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer
from vlmkit.types import Seen, Turn

from .model import VlmkitConfig, VlmkitForConditionalGeneration, describe, read
from .rows import pad

USUAL = {"padding", "padding_side", "return_tensors", "return_dict", "processor_kwargs"}  # it pads, and gives tensors


class Written:
    """A chat whose turns are written already."""

    stops: tuple[str, ...] = ()

    def render(self, turns: list[Turn], reply: bool) -> list[str | Seen]:
        return [piece for turn in turns for piece in turn.content]


class VlmkitProcessor(ProcessorMixin):  # type: ignore[misc]
    """preset  as the model's config holds it

    vlmkit  the processor that does the work
    """

    def __init__(self, tokenizer: Any, preset: Mapping[str, Any] | None = None, chat_template: None = None) -> None:
        super().__init__(tokenizer)
        self.preset = preset
        bound = read(preset)
        self.vlmkit = Processor(bound, assemble(bound), Tokenizer(tokenizer.backend_tokenizer.to_str()))

    def to_dict(self) -> dict[str, Any]:
        return {"processor_class": type(self).__name__, "preset": self.preset}

    def apply_chat_template(self, conversation: Any, chat_template: None = None, add_generation_prompt: bool = False,
                            tokenize: bool = False, labels: bool = False, **more: Any) -> Any:
        """A conversation, or a list of them, as text or, with `tokenize`, as what the model takes.

        labels  the assistant's words, to learn; -100 elsewhere
        """
        _refuse({"chat_template": chat_template, **more, **(more.get("processor_kwargs") or {})})
        alone = isinstance(conversation[0], Mapping)
        several = [conversation] if alone else list(conversation)
        if tokenize:
            return self._pad([self.vlmkit.sample(one, add_generation_prompt, labels) for one in several])
        texts = [self._write(one, add_generation_prompt) for one in several]
        return texts[0] if alone else texts

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **more: Any) -> BatchFeature:
        """Texts as `apply_chat_template` writes them, with a placeholder for each of the pictures and clips.

        images  one, a list, or a list for each text
        videos  one, or a list; a clip may be a list of frames
        """
        _refuse(more)
        flat = [one for some in _listed(images) for one in _listed(some)]
        media = {"image": iter(flat), "video": iter(_listed(videos))}
        plain = copy.copy(self.vlmkit)
        plain.chat = Written()
        samples = [plain.sample([{"role": "user", "content": list(self._parts(one, media))}])
                   for one in ([text] if isinstance(text, str) else text)]
        if left := {kind: len(rest) for kind, some in media.items() if (rest := list(some))}:
            raise PlaceholderError(f"more media than places in the text: {left}")
        return self._pad(samples)

    def _parts(self, text: str, media: Mapping[str, Iterator[Any]]) -> Iterator[dict[str, Any]]:
        """The content of a turn, from a text with placeholders."""
        kinds = {mark: kind for kind, mark in self.vlmkit.marks.items()}
        for piece in re.split("(" + "|".join(map(re.escape, kinds)) + ")", text):
            if piece not in kinds:
                yield {"type": "text", "text": piece}
                continue
            kind = kinds[piece]
            if (one := next(media[kind], None)) is None:
                raise PlaceholderError(f"the text has a place for one more {kind}")
            yield {"type": kind, kind: one}

    def _write(self, messages: Any, reply: bool) -> str:
        pieces = self.vlmkit.chat.render(talk.read(messages).turns, reply)
        marks = self.vlmkit.marks
        return "".join(p if isinstance(p, str) else marks[p.kind] if isinstance(p, Seen) else p.text for p in pieces)

    def _pad(self, samples: list[Any]) -> BatchFeature:
        pad_id = self.tokenizer.pad_token_id or 0
        return BatchFeature(pad(samples, pad_id, lambda layout: count(self.vlmkit.skeleton, layout)))


def _refuse(given: Mapping[str, Any]) -> None:
    """What would change the prompt, and is not done, is not passed over either."""
    if odd := sorted(name for name, value in given.items() if value not in (None, False) and name not in USUAL):
        raise PromptError(f"does not know {', '.join(odd)}", hint="the preset says how prompts are written, media cut")


def _listed(media: Any) -> list[Any]:
    if media is None:
        return []
    return list(media) if isinstance(media, list | tuple) else [media]


def wrap(model: VLM, processor: Processor) -> tuple[VlmkitForConditionalGeneration, VlmkitProcessor]:
    """A model and a processor of vlmkit as transformers knows them. The weights are shared, not copied."""
    said = describe(processor.preset)
    theirs = VlmkitForConditionalGeneration(VlmkitConfig(preset=said, vocab_size=model.decoder.vocab), model)
    ours = processor.tokenizer
    end = next((stop for stop in processor.chat.stops if ours.id_of(stop) in ours.special), None)
    words = PreTrainedTokenizerFast(
        tokenizer_object=RawTokenizer.from_str(ours.source), padding_side="left", model_max_length=processor.context,
        clean_up_tokenization_spaces=False, eos_token=end, pad_token=end)
    theirs.generation_config.eos_token_id = list(processor.stop_ids) or None
    theirs.generation_config.pad_token_id = words.pad_token_id or 0
    return theirs.train(model.training), VlmkitProcessor(words, said)


AutoConfig.register("vlmkit", VlmkitConfig, exist_ok=True)
AutoModelForImageTextToText.register(VlmkitConfig, VlmkitForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VlmkitConfig, VlmkitProcessor, exist_ok=True)
