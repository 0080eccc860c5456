"""A thin face over `tokenizers`: pieces of a conversation to ids, ids to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tokenizers

from ..errors import PromptError, TokenizerError
from ..limits import current
from ..types import Learned, Said, Seen

T = TypeVar("T")
Piece = str | Said | Seen | Learned
_CONVERT = ("only tokenizer.model is there; with transformers and sentencepiece: python -c \"import transformers as t; "
            "t.AutoTokenizer.from_pretrained('.').backend_tokenizer.save('tokenizer.json')\"")
ROUNDS = 8  # a special string may hide another one; nobody nests them deeper


class Prompt(NamedTuple):
    """A conversation as ids. Every visual is still one id.

    slots    positions in ids where `seen[i]` belongs, in reading order
    learned  for each id: is it one the model is trained to say
    """

    ids: list[int]
    slots: list[int]
    seen: list[Seen]
    learned: list[bool]


class Read(NamedTuple):
    """What a tokenizer made of a text. Parallel lists: a long text has a million tokens."""

    ids: list[int]
    spans: list[tuple[int, int]]  # characters of the whole text
    holes: list[int]  # positions in ids that stand for the script's gaps


class Script(NamedTuple):
    """A conversation as one text, with what each character is."""

    text: str
    said: bytearray  # 1 where somebody spoke: no special token may come of it
    learned: bytearray
    places: dict[int, Seen]  # where the text of a placeholder begins
    gaps: list[tuple[int, Seen]]  # visuals without a placeholder token; the text is cut there


class Tokenizer:
    """Pieces to ids, exactly as the tokenizer would read the whole prompt, except that speech stays speech."""

    def __init__(self, source: str | bytes, where: object = "tokenizer.json") -> None:
        self.source = source if isinstance(source, str) else _guard(lambda: source.decode("utf-8"), where)
        self.where = str(where)
        self.raw = _open(self.source, self.where)
        added = _guard(self.raw.get_added_tokens_decoder, where)
        self.added: dict[str, int] = {token.content: id for id, token in added.items()}
        self.special: frozenset[int] = frozenset(id for id, token in added.items() if token.special)
        words = _guard(lambda: self.raw.get_vocab(with_added_tokens=True), where)
        if len(set(words.values())) != len(words):
            raise TokenizerError("two strings share one id", where=where)
        self.size = max(words.values(), default=-1) + 1  # smallest embedding that holds every id
        self.before, self.after = self._around()

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """From `tokenizer.json`, or the folder that holds it."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        most = current().tokenizer_max_bytes
        if not path.is_file():
            old = path.with_suffix(".model").is_file()
            raise TokenizerError("no such file", where=path, hint=_CONVERT if old else "")
        if (size := path.stat().st_size) > most:
            raise TokenizerError("too large", where=path, limit=most, got=size, setting="tokenizer.max_bytes")
        return cls(path.read_bytes(), path)

    def save(self, path: Path) -> None:
        path.write_text(self.source, encoding="utf-8")

    def id_of(self, string: str) -> int | None:
        """The id of a string that is always a token of its own, such as `</s>` or `<image>`."""
        return self.added.get(string)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of some ids, by default without special tokens."""
        most = self.size
        known = [int(id) for id in ids if 0 <= int(id) < most]  # an embedding may have spare rows
        text: str = _guard(lambda: self.raw.decode(known, skip_special_tokens=not special), self.where)
        return text

    def encode(self, pieces: Iterable[Piece], marks: Mapping[str, str], apart: Collection[int] = ()) -> Prompt:
        """Read the whole prompt once.

        marks  kind -> placeholder, such as {"image": "<image>"}; one that is no token of this tokenizer
               gets id 0 in a gap between separately read texts, as in the original repositories
        apart  further ids that speech must never give
        """
        script = _script(pieces, marks, self.added)
        held = {self.added[m] for m in marks.values() if m in self.added}
        return self._place(self._read(script, self.special | held | set(apart)), script, held)

    def _read(self, script: Script, forbidden: frozenset[int]) -> Read:
        """Tokens of the script; cut inside special strings that somebody spoke, and nowhere else."""
        cuts = {at: False for at, _ in script.gaps}  # position -> does a sentence go on there
        for _ in range(ROUNDS):
            read = self._chunks(script, cuts)
            if not self._cut(read, script, forbidden, cuts):
                return read
        raise PromptError("the text hides special tokens in special tokens", hint="leave them out")

    def _cut(self, read: Read, script: Script, forbidden: frozenset[int], cuts: dict[int, bool]) -> bool:
        """Add a cut for each spoken special token, and one where the words after it end. Was there one?"""
        going_on = found = False
        apart = forbidden.union(self.added.values())
        for at in [at for at, id in enumerate(read.ids) if id in apart]:
            start, end = _core(read.spans[at], script.text)
            if read.ids[at] in forbidden and any(script.said[start:end]):
                if end - start < 2:
                    raise TokenizerError(f"it makes the special token {read.ids[at]} of {script.text[start:end]!r}",
                                         where=self.where)
                cuts[start + 1] = going_on = found = True
            elif going_on:
                cuts.setdefault(read.spans[at][0], False)
                going_on = False
        return found

    def _chunks(self, script: Script, cuts: dict[int, bool]) -> Read:
        """Read the text between cuts; a chunk that goes on a sentence gets no space before its first word."""
        read = Read([], [], [])
        gaps = [at for at, _ in reversed(script.gaps)]
        edges = [0, *sorted(cuts), len(script.text)]
        for start, end in pairwise(edges):
            while gaps and gaps[-1] <= start:
                _hole(read, gaps.pop())
            if start == end:
                continue
            reader = self._inner if cuts.get(start) else self.raw
            some = _guard(partial(reader.encode, script.text[start:end], add_special_tokens=False), self.where)
            read.ids.extend(some.ids)
            read.spans.extend([(a + start, b + start) for a, b in some.offsets] if start else some.offsets)
        for gap in reversed(gaps):
            _hole(read, gap)
        return read

    def _place(self, read: Read, script: Script, held: set[int]) -> Prompt:
        """What is a slot, what is learned, and what the tokenizer puts around a prompt."""
        seen = dict(zip(read.holes, (seen for _, seen in script.gaps), strict=True))
        for at in [at for at, id in enumerate(read.ids) if id in held]:
            start, _ = _core(read.spans[at], script.text)
            if start in script.places:
                seen[at] = script.places[start]
        wanted = len(script.places) + len(script.gaps)
        if len(seen) != wanted:
            raise TokenizerError(f"{wanted} visuals, but the tokenizer kept {len(seen)} of their placeholders",
                                 where=self.where)
        written = bool(self.before) and read.ids[:1] == self.before[:1]  # the template did it
        before = [] if written else self.before
        learned = [False] * len(read.ids)
        if any(script.learned):  # a token belongs to whom its last character belongs to
            learned = [bool(script.learned[max(end - 1, start)]) for start, end in read.spans]
        slots = sorted(seen)
        return Prompt([*before, *read.ids, *self.after], [len(before) + at for at in slots], [seen[at] for at in slots],
                      [*[False] * len(before), *learned, *[False] * len(self.after)])

    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that the post-processor puts before and after a text."""
        read = _guard(lambda: self.raw.encode("a", add_special_tokens=True), self.where)
        mask = read.special_tokens_mask
        inside = [at for at, put in enumerate(mask) if not put]
        first, last = (inside[0], inside[-1] + 1) if inside else (len(mask), len(mask))
        return list(read.ids[:first]), list(read.ids[last:])

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """The same tokenizer in the middle of a text: nothing is put before the first word."""
        tree = json.loads(self.source)
        for part in ("normalizer", "pre_tokenizer"):
            tree[part] = _flush(tree.get(part))
        return _open(json.dumps(tree), self.where)


def _script(pieces: Iterable[Piece], marks: Mapping[str, str], added: Mapping[str, int]) -> Script:
    """Lay the pieces end to end."""
    texts: list[str] = []
    script = Script("", bytearray(), bytearray(), {}, [])
    for piece in pieces:
        here = len(script.said)
        if isinstance(piece, Seen):
            text = marks[piece.kind]
            if text in added:
                script.places[here] = piece
            else:
                script.gaps.append((here, piece))
                text = ""
        else:
            text = piece if isinstance(piece, str) else piece.text
        said = isinstance(piece, Said)
        learned = isinstance(piece, Learned) or (isinstance(piece, Said) and piece.learned)
        texts.append(text)
        script.said.extend(bytes([said]) * len(text))
        script.learned.extend(bytes([learned]) * len(text))
    whole = "".join(texts)
    _check(whole)
    script.learned.append(0)  # a token at the end may be empty
    return script._replace(text=whole)


def _hole(read: Read, at: int) -> None:
    read.holes.append(len(read.ids))
    read.ids.append(0)
    read.spans.append((at, at))


def _check(text: str) -> None:
    """Refuse what cannot be read: half characters, and too much."""
    most = current().text_max_chars
    if len(text) > most:
        raise PromptError("the text is too long", limit=most, got=len(text), setting="text.max_chars")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"half a character (a lone surrogate) at position {error.start}") from None


def _core(span: tuple[int, int], text: str) -> tuple[int, int]:
    """A token's span without the spaces it may swallow on either side."""
    found = text[span[0] : span[1]]
    start = span[0] + len(found) - len(found.lstrip())
    return start, start + len(found.strip())


def _flush(node: Any) -> Any:
    """A normalizer or pre-tokenizer without the space before the first word."""
    if isinstance(node, list):
        return [kept for child in node if (kept := _flush(child)) is not None]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return None
    node = {key: _flush(value) for key, value in node.items()}
    if node.get("type") == "Metaspace":
        node |= {"prepend_scheme": "never"}
        node.pop("add_prefix_space", None)
    if node.get("type") == "ByteLevel":
        node |= {"add_prefix_space": False}
    return node


def _open(source: str, where: str) -> tokenizers.Tokenizer:
    raw = _guard(lambda: tokenizers.Tokenizer.from_str(source), where)
    raw.no_truncation()  # files remember settings of their training
    raw.no_padding()
    return raw


def _guard(call: Callable[[], T], where: object) -> T:
    """Run native code. Its panics are no `Exception`; only the user's own interruption passes."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TokenizerError(f"the tokenizer failed: {reason}", where=where) from None
