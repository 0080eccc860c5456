"""vlmkit textvqa FILE ANSWERS"""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmkit.errors import DataError


def textvqa(
    file: Annotated[Path, typer.Argument(help="TextVQA_0.5.1_val.json")],
    answers: Annotated[Path, typer.Argument(help="A list of {question_id, answer}, or one such object a line.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Score answers that were made elsewhere, with TextVQA's accuracy."""
    from .accuracy import accuracy
    from .questions import read

    people: dict[str, list[str]] = {str(row.get("question_id")): row.get("answers") or [] for row in read(file)}
    said = {str(row.get("question_id")): str(row.get("answer", "")) for row in _rows(answers)}
    if unknown := sorted(said.keys() - people.keys()):
        raise DataError(f"{len(unknown)} answers to questions that are not there, such as {unknown[0]}", where=answers)
    asked = [name for name, given in people.items() if given]
    found = accuracy([said.get(name, "") for name in asked], [people[name] for name in asked])
    missing = sum(name not in said for name in asked)
    if json:
        print(jsons.dumps({"accuracy": found, "questions": len(asked), "unanswered": missing}))
    else:
        rest = f", {missing} of them unanswered" if missing else ""
        print(f"accuracy {found:.2%} of {len(asked)} questions{rest}")


def _rows(file: Path) -> list[dict[str, Any]]:
    """A JSON list, or JSON lines."""
    try:
        text = file.read_text(encoding="utf-8").strip()
        rows = jsons.loads(text) if text.startswith("[") else [jsons.loads(line) for line in text.splitlines() if line]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file) from None
    except ValueError:
        raise DataError("is neither a JSON list nor JSON lines", where=file) from None
    if not all(isinstance(row, dict) and "question_id" in row for row in rows):
        raise DataError("expected objects with question_id and answer", where=file)
    return rows
