"""Nothing of plugins is undocumented: hooks, kinds, fields, parts and presets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vlmkit import hookspecs
from vlmkit.hookspecs import Part

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))
PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text("utf-8")


def test_the_page_shows_every_hook_kind_and_field() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("vlmkit_")]
    assert len(hooks) == 3
    assert [hook for hook in hooks if f"| `{hook}(" not in PAGE] == []
    assert [kind for kind in hookspecs.KINDS if f"`{kind}`" not in PAGE] == []
    assert [field for field in Part._fields if field not in PAGE] == []
    assert f"vlmkit_api = {hookspecs.API}" in PAGE


@pytest.mark.parametrize("kind", ["tower", "part", "packer", "decoder"])
def test_each_model_kind_has_a_page(kind: str) -> None:
    page = (ROOT / "docs" / f"write-a-{kind}.md").read_text("utf-8")
    assert "EXAMPLE" in page
    assert "vlmkit.registry.add(" in page
    assert f"write-a-{kind}.md" in (ROOT / "docs" / "index.md").read_text("utf-8")


def fields(file: Path) -> list[str]:
    """Names that a part's Config declares, read without importing it."""
    configs = [node for node in ast.parse(file.read_text("utf-8")).body
               if isinstance(node, ast.ClassDef) and node.name == "Config"]  # fmt: skip
    return [node.target.id for config in configs for node in config.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            and "ClassVar" not in ast.unparse(node.annotation)]  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_readme_shows_what_its_package_brings(package: Path) -> None:
    said = (package / "README.md").read_text("utf-8")
    wanted = [name for file in package.glob("vlmkit_*/*.py") for name in fields(file)]
    wanted += [file.stem for file in package.glob("vlmkit_*/presets/**/*.yaml")]
    assert [name for name in wanted if f"`{name}`" not in said and name not in said.replace("/", " ").split()
            and f"{name} " not in said] == []  # fmt: skip


def test_the_list_names_every_package() -> None:
    said = (ROOT / "plugins" / "README.md").read_text("utf-8")
    assert [package.name for package in PACKAGES if f"]({package.name})" not in said] == []
