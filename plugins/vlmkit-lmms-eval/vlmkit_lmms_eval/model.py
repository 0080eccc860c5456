"""A model of lmms-eval that answers its chat messages many at a time, with the preset's own tiles and packing."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

import vlmkit
from vlmkit.errors import VlmkitError

from . import classes


class Vlmkit(lmms):  # type: ignore[misc]
    """--model vlmkit --model_args preset=NAME[,dtype=bfloat16]

    preset      a preset's name, a folder of weights, or a hub id
    batch_size  questions that are answered side by side
    """

    is_simple = False
    named = ""  # the preset of `vlmkit-NAME`

    def __init__(self, preset: str = "", batch_size: int | str = 1, device: str | None = None, dtype: str | None = None,
                 max_batch_size: int | None = None) -> None:
        super().__init__()
        if not (preset or self.named):
            raise VlmkitError("no preset is named", where="model_args", hint="--model vlmkit --model_args preset=NAME")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise VlmkitError(f"batch_size {batch_size!r}, at least 1 wanted", where="batch_size")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise VlmkitError(f"no dtype named {dtype!r}", where="model_args", hint="float32, bfloat16 or float16")
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch, self.device = int(batch_size), torch.device(found)
        made: tuple[Any, Any] = vlmkit.load(preset or self.named, device=found,
                                            dtype=getattr(torch, dtype) if dtype else None)
        self.model, self.processor = made

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; those with the same settings run together."""
        alike: dict[str, list[int]] = defaultdict(list)
        for at, request in enumerate(requests):
            alike[json.dumps(wishes(request.args[2]), sort_keys=True)].append(at)
        answers: dict[int, GenerationResult] = {}
        for settings, places in alike.items():
            for first in range(0, len(places), self.batch):
                some = places[first : first + self.batch]
                asked = [self.conversation(requests[at]) for at in some]
                said = vlmkit.generate(self.model, self.processor, asked, rows=len(asked), details=True,
                                       **json.loads(settings))
                for at, answer in zip(some, said, strict=True):
                    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=len(answer.ids))
                    answers[at] = GenerationResult(text=answer.text, token_counts=counts)
                    self.cache_hook.add_partial("generate_until", requests[at].args, answer.text)
        return [answers[at] for at in range(len(requests))]

    def conversation(self, request: Instance) -> list[dict[str, Any]]:
        """What a task asks, as vlmkit's processor takes it."""
        _, messages, _, doc, task, split = request.args
        asked = messages(self.task_dict[task][split][doc])
        return [{"role": one["role"], "content": [part(p) for p in one["content"]]} for one in asked]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise VlmkitError("lmms-eval asks for likelihoods only of models without chat messages", where="loglikelihood",
                          hint="vlmkit eval --metric choice compares likelihoods of choices")

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        raise VlmkitError("questions in several rounds are not answered", where="generate_until_multi_round",
                          hint="choose a task of one round")


def part(given: dict[str, Any]) -> dict[str, Any]:
    """{type: image, url: a picture} -> {type: image, image: a picture}"""
    kind = given["type"]
    if kind == "text":
        return {"type": "text", "text": given["text"]}
    if kind not in ("image", "video"):
        raise VlmkitError(f"no {kind} is read; there are: text, image, video", where="messages")
    return {"type": kind, kind: given["url"]}


def wishes(given: dict[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs as vlmkit's; beams are refused, since what they find is another answer."""
    if (beams := given.get("num_beams") or 1) > 1:
        raise VlmkitError(f"num_beams {beams}; answers are greedy or drawn", where="generation_kwargs")
    until = given.get("until") or []
    drawn = given.get("do_sample", True)
    return {"max_new_tokens": given.get("max_new_tokens") or 1024, "top_p": given.get("top_p") or 1.0,
            "temperature": float(given.get("temperature") or 0) if drawn else 0.0,
            "stop": [until] if isinstance(until, str) else list(until)}


def __getattr__(name: str) -> type[Vlmkit]:
    """`Vlmkit_llava_1_5_7b` and the like, each with its preset."""
    if name not in (known := classes()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return type(name, (Vlmkit,), {"named": known[name], "__module__": __name__})
