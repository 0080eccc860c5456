"""Chats: turns of a conversation to the text a decoder was trained on."""

from collections.abc import Iterable

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> Iterable[Part]:
    here = "vlmkit.parts.chats"
    return [Part("chat", name, f"{here}.{name}") for name in ("turns", "template")]
