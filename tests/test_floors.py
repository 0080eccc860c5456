"""The import rule: a module imports from its own folder and from lower floors. Never up, never across."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = {
    "errors": -1,  # the ground under all of them
    "types": 0, "limits": 0,
    "contracts": 1, "hookspecs": 1,
    "plugins": 2, "registry": 2.5,  # which asks the plugins
    "compose": 3, "parts": 3,
    "model": 4,
    "processing": 5,
    "generate": 6, "checkpoint": 6,
    "train": 7, "view": 7, "testing": 7, "api": 7,
    "__init__": 8,
    "cli": 9, "serve": 9,  # callers of the public names
    "__main__": 10,
}  # fmt: skip
ONLY_BELOW_2 = {"parts"}  # what a stranger's part may see
TURNED_ROUND = {"registry", "__init__"}  # the two places that reach up, inside functions


def test_no_import_goes_up_or_across() -> None:
    wrong = [line for file in sorted((ROOT / "vlmkit").rglob("*.py")) for line in offences(file)]
    assert not wrong, "\n" + "\n".join(wrong)


def offences(file: Path) -> Iterator[str]:
    here = file.relative_to(ROOT).with_suffix("").parts[1:]
    top, floor = here[0], FLOORS[here[0]]
    for node, inside in imports(ast.parse(file.read_text(encoding="utf-8"))):
        for to in targets(node, ("vlmkit", *here)):
            below = FLOORS[to] < (2 if top in ONLY_BELOW_2 else floor)
            if to != top and not below and not (inside and top in TURNED_ROUND):
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                yield f"{place}: {top} (floor {floor}) imports {to} (floor {FLOORS[to]})"


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import and whether it stands inside a function; those for annotations only do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, inside
        yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def targets(node: ast.Import | ast.ImportFrom, here: tuple[str, ...]) -> set[str]:
    """The top folders or files of vlmkit that an import names."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
    else:
        stem = list(here[: len(here) - node.level]) if node.level else []
        stem += node.module.split(".") if node.module else []
        names = [[*stem, alias.name] for alias in node.names if alias.name != "__version__"]  # a text, always there
    ours = [n for n in names if n[0] == "vlmkit"]
    return {n[1] if len(n) > 1 and n[1] in FLOORS else "__init__" for n in ours}


def test_the_rule_sees_what_it_should() -> None:
    tree = ast.parse("from ..plugins import x\nimport vlmkit.cli.main\nfrom . import y\nfrom vlmkit import errors")
    nodes = [node for node, _ in imports(tree)]
    found = [targets(node, ("vlmkit", "parts", "towers")) for node in nodes]
    assert found == [{"plugins"}, {"cli"}, {"parts"}, {"errors"}]


def test_no_file_is_long_and_the_package_is_small() -> None:
    texts = {str(f): f.read_text(encoding="utf-8") for f in (ROOT / "vlmkit").rglob("*.py")}
    lengths = {file: len(text.splitlines()) for file, text in texts.items()}
    assert {file: n for file, n in lengths.items() if n > 350} == {}
    assert sum(map(code, texts.values())) <= 15_800


def code(text: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and n not in told for n, line in lines)
