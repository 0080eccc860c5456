"""Questions about text in pictures, as TextVQA's files hold them, with the answers of ten people."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError

ASK = "\nAnswer the question using a single word or phrase."  # how LLaVA-1.5 is asked


class Config(PartConfig):
    """Where the files are."""

    file: str = Field(description="TextVQA_0.5.1_val.json, or another of its files")
    images: str = Field(description="the folder of the pictures, <image_id>.jpg or .png")
    ask: str = Field(ASK, description="what stands behind each question")


class Questions:
    """Item i is the i-th question of the file; the answer most people gave is the one that is learned."""

    def __init__(self, config: Config) -> None:
        self.images, self.ask, self.rows = Path(config.images), config.ask, read(Path(config.file))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[dict[str, Any]]:
        row = self.rows[i]
        where = f"question {row.get('question_id', i)}"
        name, answers, question = row.get("image_id"), row.get("answers"), row.get("question")
        if not isinstance(question, str) or not isinstance(name, str) or Path(name).name != name:
            raise DataError("expected a question, and the plain name of a picture", where=where)
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers) or not answers:
            raise DataError("has no answers; the test split cannot be scored here", where=where)
        found = next((path for end in (".jpg", ".png") if (path := self.images / f"{name}{end}").is_file()), None)
        if found is None:
            raise DataError(f"there is no picture {name}.jpg in {self.images}", where=where)
        asked = [{"type": "image", "image": str(found)}, {"type": "text", "text": question.capitalize() + self.ask}]
        most = Counter(answers).most_common(1)[0][0]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": most, "answers": answers}]


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of TextVQA."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["data"]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file, hint="textvqa.org has the files") from None
    except (ValueError, KeyError, TypeError):
        raise DataError("is no file of TextVQA: a JSON object with `data`, a list of questions", where=file) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("`data` is a list of questions", where=file)
    return rows


def build(config: Config) -> Questions:
    return Questions(config)


_HERE = Path(__file__).parent / "example"
EXAMPLE = {"file": str(_HERE / "example.json"), "images": str(_HERE)}
