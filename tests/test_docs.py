"""The documentation is under test: its code runs, its commands parse, and nothing that exists is missing from it."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import vlmkit
from vlmkit import hookspecs, registry
from vlmkit.cli import eval
from vlmkit.cli.main import hoist, make_app
from vlmkit.compose.merge import is_word
from vlmkit.compose.preset import Clips, Preset, Stream, Tokenizer, Weights
from vlmkit.plugins import make_manager

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("0*.py"))
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: m.start("code")].count("\n"), m["language"], m["code"]) for m in FENCE.finditer(text)]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `vlmkit` line of a shell block: where it stands, and its words."""
    for page in PAGES:
        for block in blocks(page):
            for number, line in enumerate(block.code.splitlines() if block.language == "sh" else (), block.line + 1):
                words = [w for w in shlex.split(line, comments=True) if not w.startswith("VLMKIT_")]
                if words and words[0].endswith("vlmkit"):
                    yield f"{page.name}:{number}", words[1:]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like the top of a checkout; parts that are added are forgotten."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    registry._added.clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        if block.language == "python":
            code = "\n" * block.line + block.code  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_examples_run(example: Path, place: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    runpy.run_path(str(example), run_name="__main__")


def test_demo_answers_right(capsys: pytest.CaptureFixture[str]) -> None:
    asked = json.loads((ROOT / "examples" / "media" / "questions.json").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    assert end.value.code == 0
    right = re.search(r"^(\d+) of (\d+) right", capsys.readouterr().out, re.M)
    assert right is not None
    assert int(right[2]) == len(asked)
    assert int(right[1]) >= 11  # what the demo promises


@pytest.mark.parametrize(("where", "words"), list(commands()), ids=lambda v: v if isinstance(v, str) else "")
def test_commands_parse(where: str, words: list[str]) -> None:
    group: Any = typer.main.get_command(make_app(make_manager(entry_points=False)))
    with contextlib.suppress(typer.Exit):  # --help ends here
        top = group.make_context("vlmkit", hoist(words))
        name, command, rest = group.resolve_command(top, [*top._protected_args, *top.args])
        given = command.make_context(name, rest, parent=top).params
        if name == "eval":
            given["words"] = [word for word in given["words"] or () if not word.startswith(eval.OURS)]
        compose_all(given)


def compose_all(given: dict[str, Any]) -> None:
    """The presets that a command line names are there, and its words fit them."""
    more = list(given.get("words") or [])
    sources = [given[key] for key in ("source", "a", "b") if key in given] or more[:1]
    for source in sources:
        vlmkit.compose(source, *(word for word in more if is_word(word) or word in vlmkit.presets()))


def test_every_command_is_shown() -> None:
    app = make_app(make_manager(entry_points=False))
    there = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert there - {words[0] for where, words in commands() if where.startswith("command-line")} == set()


def test_every_hook_kind_and_field_is_shown() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("vlmkit_")]
    writing = (ROOT / "docs" / "write-a-part.md").read_text(encoding="utf-8")
    assert [hook for hook in hooks if f"`{hook}(" not in writing] == []
    assert [kind for kind in hookspecs.KINDS if f"| `{kind}` |" not in writing] == []
    presets = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    fields = {field.alias or name for model in (Preset, Stream, Clips, Tokenizer, Weights)
              for name, field in model.model_fields.items()}  # fmt: skip
    assert [field for field in sorted(fields) if f"`{field}`" not in presets] == []


def test_the_page_of_parts_is_fresh() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_parts.py"))["page"]
    assert (ROOT / "docs" / "parts.md").read_text(encoding="utf-8") == page(), "run `python docs/make_parts.py`"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)|<img src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            link = target[0] or target[1]
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
