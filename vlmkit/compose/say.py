"""What pydantic found, in our words: one sentence for each place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlmkit.registry import nearest

from .nodes import Path

WANTED = {
    "int_type": "an integer", "int_from_float": "an integer", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "list_type": "a list", "tuple_type": "a list", "dict_type": "a section of fields",
    "model_type": "a section of fields", "model_attributes_type": "a section of fields",
    "finite_number": "a finite number", "none_required": "null", "set_type": "a list", "path_type": "a path",
    "greater_than_equal": "at least {ge:g}", "greater_than": "more than {gt:g}", "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}", "multiple_of": "a multiple of {multiple_of}", "literal_error": "{expected}",
    "enum": "{expected}", "too_short": "at least {min_length} items", "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters", "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text like {pattern}",
}  # fmt: skip


def complaints(errors: Iterable[Any], data: Any) -> list[tuple[Path, str]]:
    """(path inside `data`, sentence), one for each path; the arms of a union are joined by `or`."""
    wanted: dict[Path, list[str]] = {}
    values: dict[Path, Any] = {}
    for error in errors:
        path, value = _inside(error["loc"], data, error["type"] in ("missing", "extra_forbidden"))
        values[path] = value
        wanted.setdefault(path, []).append(_wanted(error))
    deepest = [p for p in wanted if not any(q[: len(p)] == p and q != p for q in wanted)]
    return [(path, _sentence(list(dict.fromkeys(wanted[path])), values[path])) for path in deepest]


def shown(value: Any) -> str:
    """A value as it may stand in a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _inside(loc: tuple[str | int, ...], data: Any, missing: bool) -> tuple[Path, Any]:
    """The part of pydantic's location that exists in the data; the rest are names of union arms."""
    path: Path = ()
    for i, step in enumerate(loc):
        known = (isinstance(data, dict) and step in data) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data))  # fmt: skip
        if known:
            data, path = data[step], (*path, step)
        elif missing and i == len(loc) - 1:
            return (*path, step), None
    return path, data


def _wanted(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in WANTED:
        return WANTED[kind].format(**context)
    if kind == "missing":
        return "!is missing"
    if kind == "extra_forbidden":
        return "!no such field"
    if kind in ("value_error", "assertion_error"):
        return f"!{context.get('error', error['msg'])}"
    return "!" + str(error["msg"]).replace("Input should be ", "expected ")


def _sentence(wanted: list[str], value: Any) -> str:
    said = [text[1:] for text in wanted if text.startswith("!")]
    if said:
        return "; ".join(said)
    choices = [word.strip(" '") for text in wanted if "'" in text for word in text.replace(" or ", ",").split(",")]
    return f"expected {' or '.join(wanted)}, got {shown(value)}" + (
        nearest(value, choices) if isinstance(value, str) else "")  # fmt: skip
