"""Tokenizer, chat template and what ends an answer, as a folder of transformers says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import JSON, Fields, read_json, read_text

Layers = list[tuple[str, JSON]]


def talk(folder: Path, config: Fields, text: Fields, kinds: tuple[str, ...], notes: list[str]) -> Layers:
    """Sections with the files they are from. `text`: the language model's configuration; `kinds`: image, video"""
    said = Fields.of(folder / "tokenizer_config.json")
    processor = Fields.of(folder / "processor_config.json")
    names = added(folder)
    marks = {kind: mark(f"{kind}_token", said, processor) or f"<{kind}>" for kind in ("image", "video")}
    for kind in kinds if names else ():
        notes += _doubts(config, kind, marks[kind], names)
    layers: Layers = [("this folder", {"tokenizer": {"from": str(folder.resolve()), **marks}})]
    file, source = template(folder, said, processor)
    if source:
        layers.append((file, {"chat": {"use": "template", "text": source, **marks}}))
        specials = {key: found for key in ("bos", "eos") if (found := token(said, f"{key}_token"))}
        layers.append((said.file.name, {"chat": specials} if specials else {}))
        file, ends = stops(folder, config, text, said, names)
        ends += ["###"] * ("###" in source)  # VipLLaVA's, which is no token
        layers.append((file, {"chat": {"stops": ends}} if ends else {}))
    return layers


def mark(key: str, said: Fields, processor: Fields) -> str:
    """The placeholder: the tokenizer's own name for it goes before the processor's."""
    extra = said.get("extra_special_tokens")
    inner = extra.get(key) if isinstance(extra, dict) else None
    return token(said, key) or (inner if isinstance(inner, str) else "") or processor.get(key, str) or ""


def _doubts(config: Fields, kind: str, string: str, names: dict[int, str]) -> list[str]:
    """Where the configuration and the tokenizer disagree about a placeholder. The tokenizer makes the ids."""
    found = next((id for id, name in names.items() if name == string), None)
    key = f"{kind}_token_id" if f"{kind}_token_id" in config else f"{kind}_token_index"
    told = config.get(key, int)
    if found is None:
        return [f"tokenizer.json: has no token {string!r}; the place of each {kind} is kept without one"]
    if told is not None and told != found:
        return [f"{config.file.name}: {key} is {told}, the tokenizer's {string!r} is {found}; the tokenizer's is used"]
    return []


def template(folder: Path, said: Fields, processor: Fields) -> tuple[str, str]:
    """The chat template and the file that holds it; of several the one that transformers takes."""
    for fields in (processor, Fields.of(folder / "chat_template.json")):
        if found := _default(fields):
            return fields.file.name, found
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.name, read_text(jinja, "template_max_bytes")
    return said.file.name, _default(said)


def _default(fields: Fields) -> str:
    """One template, or the one named `default` of several."""
    found = fields.get("chat_template", str, list, dict)
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        if not isinstance(found.get("default"), str):
            names = ", ".join(found) or "nothing"
            raise fields.wrong("chat_template", f"holds {names}; wanted a template named default")
        found = found["default"]
    return found or ""


def token(said: Fields, key: str) -> str:
    """A special token, written as text or as a mapping."""
    found = said.get(key, str, dict)
    return str(found.get("content", "")) if isinstance(found, dict) else found or ""


def stops(folder: Path, config: Fields, text: Fields, said: Fields, names: dict[int, str]) -> tuple[str, list[str]]:
    """The strings that end an answer, and the file that says so. Where nobody does, the tokenizer's last token."""
    last = token(said, "eos_token")
    for fields in (Fields.of(folder / "generation_config.json"), config, text):
        ends: Any = fields.get("eos_token_id", int, list)
        if ends is not None:
            ids = ends if isinstance(ends, list) else [ends]
            found = [names[id] for id in ids if type(id) is int and id in names]
            return fields.file.name, found or [last] * bool(last)
    return said.file.name, [last] * bool(last)


def added(folder: Path) -> dict[int, str]:
    """id -> string of the special and added tokens."""
    told = read_json(folder / "tokenizer.json", "tokenizer_max_bytes").get("added_tokens")
    rows = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return {one["id"]: one["content"] for one in rows
            if type(one.get("id")) is int and isinstance(one.get("content"), str)}
