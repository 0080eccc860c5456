"""Tokens to text as they arrive: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # how decoders show a character whose other bytes are still to come


class Writer:
    """The text of one answer.

    text     what has been given out so far
    stopped  a stop string was met; the text ends before it
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stops = decode, tuple(stops)
        self._held = ""  # complete, but perhaps the beginning of a stop string
        self._ids: list[int] = []  # the window: tokens already shown, then new ones
        self._old = 0  # how many of the window's tokens are shown
        self._shown = 0  # characters of the window's text that are out

    def add(self, token: int) -> str:
        """Take one token; give the text that is certain now."""
        if self.stopped:
            return ""
        self._ids.append(token)
        whole = self._decode(self._ids)
        sure = len(whole.rstrip(HALF))
        piece, self._shown = whole[self._shown : sure], max(self._shown, sure)
        if sure == len(whole):
            self._move()
        return self._release(piece)

    def finish(self) -> str:
        """No more tokens: give what was held back."""
        if self.stopped:
            return ""
        piece = self._release(self._decode(self._ids)[self._shown :])
        if not self.stopped:
            piece, self.text, self._held = piece + self._held, self.text + self._held, ""
        return piece

    def _move(self) -> None:
        """Forget old tokens but the last that show: decoders treat a text's first token differently."""
        fresh = self._ids[self._old :]
        if shown := len(self._decode(fresh)):
            self._ids, self._old, self._shown = fresh, len(fresh), shown

    def _release(self, piece: str) -> str:
        pending = self._held + piece
        found = [at for stop in self._stops if (at := pending.find(stop)) >= 0]
        if found:
            self.stopped, out, self._held = True, pending[: min(found)], ""
        else:
            keep = max((_overlap(pending, stop) for stop in self._stops), default=0)
            out, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
