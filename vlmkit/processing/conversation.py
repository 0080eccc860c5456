"""What users write as a conversation, checked and brought into one form: turns, and media in order."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..errors import MediaFetchError, MediaFormatError, MediaLimitError, PlaceholderError, PromptError
from ..limits import current
from ..types import Seen, Turn

ROLES = ("system", "user", "assistant")
KINDS: dict[str, Literal["image", "video"]] = {
    "image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"
}  # fmt: skip
KEYS = ("image_url", "video_url", "image", "video", "path", "url", "base64")


class Conversation(NamedTuple):
    turns: list[Turn]
    media: list[tuple[Literal["image", "video"], Any]]  # Seen(i) is media[i]


def read(messages: Any) -> Conversation:
    """Messages with content parts -> turns that say where each visual stands."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not _is_list(messages) or not messages:
        raise PromptError("expected a list of messages", where="messages")
    if len(messages) > (most := current().text_max_messages):
        raise PromptError("too many messages", limit=most, got=len(messages), setting="text.max_messages")
    media: list[tuple[Literal["image", "video"], Any]] = []
    turns = [_turn(message, f"messages[{at}]", media) for at, message in enumerate(messages)]
    _bound(turns, len(media))
    return Conversation(turns, media)


def _bound(turns: list[Turn], media: int) -> None:
    """Refuse too much text and too many visuals before any of it costs something."""
    limits = current()
    chars = sum(len(part) for turn in turns for part in turn.content if isinstance(part, str))
    if chars > limits.text_max_chars:
        raise PromptError("the text is too long", limit=limits.text_max_chars, got=chars, setting="text.max_chars")
    if media > limits.media_max_images:
        raise MediaLimitError("too many pictures and clips in one conversation", limit=limits.media_max_images,
                              got=media, setting="media.max_images")


def _turn(message: Any, where: str, media: list[tuple[Literal["image", "video"], Any]]) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise PromptError("a message has a role and a content", where=where)
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"no role {str(role)[:40]!r}; there are: {', '.join(ROLES)}", where=where)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not _is_list(parts):
        raise PromptError("content is a text or a list of parts", where=where)
    read: list[str | Seen] = []
    for at, part in enumerate(parts):
        place = f"{where}.content[{at}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise PromptError("a part is a mapping with a type", where=place)
        kind = part.get("type")
        if not isinstance(kind, str):
            raise PromptError("a part has a type", where=place, hint=f"one of: text, {', '.join(KINDS)}")
        if kind in ("text", "input_text"):
            if not isinstance(part.get("text"), str):
                raise PromptError("a text part has a text", where=place)
            read.append(part["text"])
        elif kind in KINDS:
            read.append(Seen(len(media), KINDS[kind]))
            media.append((KINDS[kind], _source(part, KINDS[kind], place)))
        else:
            raise PromptError(f"no part of type {kind[:40]!r}; there are: text, {', '.join(KINDS)}", where=place)
    return Turn(role, read)


def _source(part: Mapping[str, Any], kind: str, where: str) -> Any:
    """The one source of a part: a path, bytes, an image, an array or frames."""
    given = [key for key in KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise PlaceholderError(f"1 {kind} part but {len(given)} sources", where=where,
                               hint=f"give one of: {', '.join(KEYS[2:])}")
    key, value = given[0], part[given[0]]
    if key in ("image_url", "video_url") and isinstance(value, Mapping):
        value = value.get("url")
    if key == "path":
        return value
    if key == "base64":
        return _decode(value, where)
    if isinstance(value, str) and value[:5].lower() == "data:":
        return _decode(_payload(value, where), where)
    address = isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))
    if address or key in ("url", "image_url", "video_url"):
        raise MediaFetchError("addresses are not fetched", where=where, public="address not allowed",
                              hint="download it first and give its path or bytes")
    return value


def _payload(address: str, where: str) -> str:
    head, comma, payload = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise MediaFormatError("a data: address looks like data:image/png;base64,...", where=where)
    return payload


def _decode(text: Any, where: str) -> bytes:
    if isinstance(text, str) and text[:5].lower() == "data:":
        text = _payload(text, where)
    if not isinstance(text, str | bytes):
        raise MediaFormatError(f"base64 is a text, not {type(text).__name__}", where=where)
    most = current().video_max_bytes  # the smaller limit of pictures is checked when it is opened
    if len(text) > most // 57 * 78 + 80:  # lines of 76 characters and their end hold 57 bytes
        raise MediaLimitError("too large", where=where, limit=most, got=len(text) // 4 * 3, setting="video.max_bytes")
    try:
        plain = text.encode("ascii") if isinstance(text, str) else text
        return base64.b64decode(plain.translate(None, b" \t\r\n"), validate=True)  # mail and shells break lines
    except (binascii.Error, ValueError, TypeError):
        raise MediaFormatError("not base64", where=where) from None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
