"""Begins a package with one part: files of `template/`, with names filled in."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from .. import registry
from ..errors import PluginError
from ..registry import nearest

HERE = Path(__file__).parent / "template"
KINDS = ("tower", "projector", "packer", "decoder", "dataset", "metric")


def make(name: str, kind: str, out: Path) -> Path:
    """Write the package `name` into a new folder of `out`; gives that folder."""
    if kind not in KINDS:
        raise PluginError(f"no template for {kind!r}{nearest(kind, KINDS)}; there are: {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PluginError(f"{name!r} is no name for a package", hint="small letters, digits and -: vlmkit-pooling")
    part, module, folder = name.removeprefix("vlmkit-"), name.replace("-", "_"), out / name
    if folder.exists():
        raise PluginError("is there already", where=folder, hint="choose another name, or another --out")
    if part in registry.names(kind):
        raise PluginError(f"there is a {kind} named {part!r} already", hint="`vlmkit parts` lists them")
    words = {"name": name, "module": module, "part": part, "kind": kind}
    files = {"pyproject.toml": "pyproject", "README.md": "readme", "tests/test_part.py": "test",
             f"{module}/__init__.py": "init", f"{module}/{kind}.py": kind,
             f"{module}/presets/{part}.yaml": f"preset_{kind}"}  # fmt: skip
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = Template((HERE / f"{source}.txt").read_text("utf-8")).substitute(words)
        (folder / path).write_text(text, "utf-8")
    return folder
