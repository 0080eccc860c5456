"""The two functions people call: `generate` and `stream`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from ..errors import PromptError
from ..model.features import FeatureCache
from .engine import Engine
from .needs import Model, Processor
from .request import Options, Request, Wishes
from .sample import number


def generate(model: Model, processor: Processor, conversations: Any, images: Any = None, videos: Any = None, *,
             details: bool = False, rows: int = 8, features: FeatureCache | None = None,
             compile: bool = False, **wishes: Unpack[Wishes]) -> Any:
    """Answer a prompt, a conversation, or a list of them.

    A text, with its `images` and `videos`, or one conversation gives one answer; a list gives a list. An
    answer is a `str`, with `details` a `Generation`. Each conversation draws from its own generator seeded
    with `seed`, so it gets the answer that it would get alone. `rows` is how many run side by side. `compile` is for
    models and programs that live long: see Engine.

    max_new_tokens      the longest answer; 256
    temperature         0, the default, takes the best token; more is more varied
    top_p, top_k        draw from the best tokens that sum to top_p, from the top_k best; 1 and 0 are all
    repetition_penalty  above 1: less of what was said
    stop                a text, or several, that the answer ends before
    ignore_eos          go on behind the model's own end of an answer
    seed                makes drawing repeatable
    deadline            seconds for an answer; it ends there, with what it has
    """
    several, alone = _several(conversations, images, videos)
    options = Options.of(wishes, logprobs=details)
    number(rows, "rows", lambda x: x >= 1, "a whole number of at least 1", whole=True)
    rows = max(1, min(rows, len(several)))
    engine = Engine(model, processor, rows=rows, reuse=len(several) > 1, features=features, compile=compile)
    left, requests = deque(several), list[Request]()
    while left or engine.busy:
        while left and engine.open:
            requests.append(engine.submit(left.popleft(), options))
        for request in engine.step():
            if request.error:
                raise request.error
    answers: list[Any] = [r.generation() if details else r.writer.text for r in requests]
    return answers[0] if alone else answers


def stream(model: Model, processor: Processor, conversation: Any, images: Any = None, videos: Any = None, *,
           features: FeatureCache | None = None, compile: bool = False, **wishes: Unpack[Wishes]) -> Iterator[str]:
    """The answer to one conversation, piece by piece; the pieces joined are what `generate` returns."""
    several, alone = _several(conversation, images, videos)
    if not alone:
        raise PromptError("stream answers one conversation; use generate for a list of them")
    options = Options.of(wishes)
    engine = Engine(model, processor, rows=1, reuse=False, features=features, compile=compile)
    return engine.pieces(engine.submit(several[0], options))


def _several(conversations: Any, images: Any, videos: Any) -> tuple[list[Any], bool]:
    """A list of conversations, and whether it was only one."""
    if isinstance(conversations, str):
        return [_ask(conversations, images, videos)], True
    if images is not None or videos is not None:
        raise PromptError("images and videos go with a text; in a conversation they are content parts")
    conversations = list(conversations)
    alone = bool(conversations) and isinstance(conversations[0], Mapping)
    if alone:
        return [conversations], True
    return [_ask(c) if isinstance(c, str) else c for c in conversations], False


def _ask(text: str, images: Any = None, videos: Any = None) -> list[dict[str, Any]]:
    """A conversation of one question."""
    content = [{"type": "image", "image": image} for image in _list(images)]
    content += [{"type": "video", "video": video} for video in _list(videos)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def _list(given: Any) -> list[Any]:
    """`images="cat.jpg"` means one picture."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
