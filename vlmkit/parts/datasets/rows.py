"""A row as people store it, to messages: LLaVA's `conversations`, or `messages`, with pictures and clips beside."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.errors import DataError, PlaceholderError, VlmkitError
from vlmkit.limits import current

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MARK = re.compile("<(image|video)>")
SOURCES = ("image", "video", "path", "image_url", "video_url", "url", "base64")
KEYS = ("conversations", "messages", "prompt", "question", "chosen", "rejected")
Item = list[dict[str, Any]]
Named = Callable[[str], Any]  # the name of a file -> its path or its bytes


def placed(read: Callable[[Any, int], Item]) -> Callable[[Any, int], Item]:
    """A dataset's `__getitem__`: rows count from 0 on, and an error in one says where it stands."""

    def get(self: Any, at: int) -> Item:
        if not 0 <= at < len(self):
            raise IndexError(at)
        try:
            return read(self, at)
        except VlmkitError as error:
            error.where = self.place(at)
            raise

    return get


def messages(row: Any, named: Named) -> list[dict[str, Any]]:
    """`<image>` and `<video>` in a user's text stand for what the row has beside; elsewhere they are text.

    Where a row has clips and no picture, `<image>` stands for a clip, as in LLaVA-Video's files. Answers in `chosen`
    and `rejected` come after the turns, or after `prompt` or `question`: the second stands in the message of the first,
    which is the last turn where that is an answer already.
    """
    row = row if isinstance(row, Mapping) else {}
    beside = {kind: deque(source(one, named) for one in _listed(row.get(kind) or row.get(f"{kind}s")))
              for kind in ("image", "video")}
    said = row.get("conversations") or row.get("messages")
    if said is None and row.get("chosen") is not None:
        said = _asked(row, "".join(f"<{kind}>" * len(some) + "\n" * bool(some) for kind, some in beside.items()))
    if not isinstance(said, Sequence) or isinstance(said, str):
        raise DataError("no conversation: a row has `conversations` or `messages`, a list of turns")
    there, asked = {kind: len(some) for kind, some in beside.items()}, {"image": 0, "video": 0}
    instead = {"image": "image" if beside["image"] or not beside["video"] else "video", "video": "video"}

    def seen(mark: str) -> dict[str, Any]:
        kind = instead[mark]
        asked[kind] += 1
        return {"type": kind, kind: beside[kind].popleft() if beside[kind] else b""}

    turns = [_turn(turn, named, seen) for turn in said]
    if row.get("chosen") is not None and not (turns and turns[-1]["role"] == "assistant"):
        turns.append({"role": "assistant", "content": _answer(row["chosen"], "chosen")})
    if turns and (rejected := row.get("rejected") or said[-1].get("rejected")) is not None:
        turns[-1]["rejected"] = _answer(rejected, "rejected")
    if asked != there:
        raise PlaceholderError("placeholders for {image} pictures and {video} clips".format_map(asked)
                               + ", but {image} and {video} are there".format_map(there))
    return turns


def _asked(row: Mapping[str, Any], marks: str) -> Any:
    """What both answers of a row answer: a text, of which pictures stand in front where it names none, or turns."""
    asked = row.get("prompt") or row.get("question")
    if asked is None:
        return row["chosen"][:-1] if isinstance(row["chosen"], list) else None
    if not isinstance(asked, str):
        return asked
    return [{"role": "user", "content": asked if MARK.search(asked) else marks + asked}]


def _answer(said: Any, key: str) -> str:
    """An answer as preference sets have it: a text, a turn, or turns that end in it."""
    if isinstance(said, list) and said:
        said = said[-1]
    if isinstance(said, Mapping):
        said = said.get("value", said.get("content"))
    if isinstance(said, list):
        said = "".join(str(part.get("text") or "") for part in said if isinstance(part, Mapping))
    if not isinstance(said, str):
        raise DataError(f"`{key}` is {type(said).__name__}; wanted a text, a turn or turns")
    return said


def _turn(turn: Any, named: Named, seen: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError("a turn is a mapping")
    role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if role not in ROLES:
        raise DataError(f"no role {str(role)[:40]!r}; there are: {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": ROLES[role], "content": _split(content, seen) if ROLES[role] == "user" else content}
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise DataError(f"a turn's text is {type(content).__name__}")
    return {"role": ROLES[role], "content": [_part(part, named, seen) for part in content]}


def _split(text: str, seen: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Words and what stands between them; the spaces around a placeholder stay as they are."""
    pieces = MARK.split(text)  # words, kind, words, kind, words
    parts = [seen(piece) if at % 2 else {"type": "text", "text": piece} for at, piece in enumerate(pieces)]
    return [part for part in parts if part.get("text") != ""]


def _part(part: Any, named: Named, seen: Callable[[str], dict[str, Any]]) -> Any:
    """A part that names no source stands for the next picture or clip beside."""
    if not isinstance(part, Mapping):
        return part
    part = {key: value for key, value in part.items() if value is not None}  # columns of all parts, in parquet
    kind = part.get("type")
    if kind not in ("image", "video"):
        return part
    given = [key for key in SOURCES if key in part]
    if not given:
        return seen(kind)
    return {"type": kind} | {key: part[key] if key == "base64" else source(part[key], named) for key in given}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def source(value: Any, named: Named) -> Any:
    """Bytes are themselves, also as `datasets` stores them; a file goes by its name; several are a clip's frames."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, list | tuple):
        return [source(one, named) for one in value]
    if not isinstance(value, str) or value.lower().startswith(("data:", "http://", "https://")):
        return value  # the processor knows what it is, and fetches nothing
    return named(value)


def below(root: Path, name: str) -> str:
    """A file below a folder, and nowhere else."""
    path = root / name
    try:
        plain = not Path(name).is_absolute() and ".." not in Path(name).parts
        inside = plain and path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{name[:80]!r}: {type(error).__name__}") from None
    if not inside:
        raise DataError(f"{name[:80]!r} leads out of {root}", hint="set `images` to the folder that all are in")
    return str(path)


def parse(text: bytes) -> Any:
    """A row's JSON."""
    if len(text) > (most := current().video_max_bytes):
        raise DataError("the row is too large", limit=most, got=len(text), setting="video.max_bytes")
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}") from None


def existing(path: str, what: str) -> Path:
    """A path on this machine, or one clear error."""
    found = Path(os.path.expanduser(path))
    if not found.exists():
        raise DataError(f"no such {what}", where=path, hint=f"the current folder is {Path.cwd()}")
    return found
