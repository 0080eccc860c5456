"""The two functions people call: `generate` and `stream`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from ..errors import PromptError
from .engine import Engine, Model, Options, Processor, Request
from .sample import Sampling, number


class Wishes(TypedDict, total=False):
    """How to answer; `generate` and `stream` take these by name, and defaults are those of Options and Sampling."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: str | Sequence[str] | None
    ignore_eos: bool
    seed: int | None


def generate(model: Model, processor: Processor, conversations: Any, images: Any = None, videos: Any = None, *,
             details: bool = False, rows: int = 8, **wishes: Unpack[Wishes]) -> Any:
    """Answer a prompt, a conversation, or a list of them.

    A text, with its `images` and `videos`, or one conversation gives one answer; a list gives a list. An
    answer is a `str`, with `details` a `Generation`. Each conversation draws from its own generator seeded
    with `seed`, so it gets the answer that it would get alone. `rows` is how many run side by side.

    max_new_tokens      the longest answer; 256
    temperature         0, the default, takes the best token; more is more varied
    top_p, top_k        draw from the best tokens that sum to top_p, from the top_k best; 1 and 0 are all
    repetition_penalty  above 1: less of what was said
    stop                a text, or several, that the answer ends before
    ignore_eos          go on behind the model's own end of an answer
    seed                makes drawing repeatable
    """
    several, alone = _several(conversations, images, videos)
    options = _options(wishes)
    number(rows, "rows", lambda x: x >= 1, "a whole number of at least 1", whole=True)
    engine = Engine(model, processor, rows=max(1, min(rows, len(several))))
    waiting, requests = deque(several), list[Request]()
    while waiting or engine.running:
        while waiting and engine.open:
            requests.append(engine.admit(processor([waiting.popleft()]), options))
        engine.step()
    answers: list[Any] = [r.generation() if details else r.writer.text for r in requests]
    return answers[0] if alone else answers


def stream(model: Model, processor: Processor, conversation: Any, images: Any = None, videos: Any = None,
           **wishes: Unpack[Wishes]) -> Iterator[str]:
    """The answer to one conversation, piece by piece; the pieces joined are what `generate` returns."""
    several, alone = _several(conversation, images, videos)
    if not alone:
        raise PromptError("stream answers one conversation; use generate for a list of them")
    options = _options(wishes)
    engine = Engine(model, processor, rows=1)
    return _pieces(engine, engine.admit(processor(several), options))


def _pieces(engine: Engine, request: Request) -> Iterator[str]:
    while engine.running:
        engine.step()
        if request.piece:
            yield request.piece


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


def _options(wishes: Wishes) -> Options:
    """The same in the engine's terms, checked."""
    given: dict[str, Any] = {**wishes, "stop": _stops(wishes.get("stop"))}
    sampling = Sampling(**{name: given.pop(name) for name in Sampling._fields if name in given})
    return Options(sampling=sampling, **given).check()


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(stop, str | list | tuple | None):
        raise PromptError("expected a text or a list of them", where="stop")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
