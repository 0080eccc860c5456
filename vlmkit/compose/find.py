"""A name or a path -> a preset file. First match wins: paths, the user's folders, plugins, what is shipped."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import NamedTuple

from vlmkit import plugins
from vlmkit.errors import PluginConflictError, PresetError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
WHOLE = "preset.yaml"  # the preset inside a folder of weights


class Found(NamedTuple):
    """A preset file, the folder its name is relative to, and who owns that folder."""

    name: str
    path: Path
    folder: Path
    owner: str  # "file", "VLMKIT_PRESETS", "user", or a plugin's name

    @property
    def installed(self) -> bool:
        return self.owner not in ("file", "VLMKIT_PRESETS", "user")


def folders() -> list[tuple[str, Path]]:
    """Where presets live, with their owners, in lookup order."""
    given = [Path(text) for text in os.environ.get("VLMKIT_PRESETS", "").split(os.pathsep) if text]
    home = Path(os.path.expanduser(os.environ.get("XDG_CONFIG_HOME") or "~/.config"), "vlmkit", "presets")
    return [("VLMKIT_PRESETS", folder) for folder in given] + [("user", home)] + installed()


def installed() -> list[tuple[str, Path]]:
    """The folders of plugins, then the shipped one."""
    offered = plugins.default().presets
    return sorted(offered, key=lambda offer: offer[0] == "vlmkit")


def find(name: str) -> Found:
    """The file a name means, or a `PresetError` with the nearest names."""
    if name.startswith(("/", "./", "../", "~")) or name.endswith((".yaml", ".yml")):
        return _file(Path(os.path.expanduser(name)))  # Path's own fails for those who have no home
    for owner, folder in folders():
        if found := within(folder, name, owner):
            return _alone(found)
    if _is_file(Path(name, WHOLE)):
        return _file(Path(name))
    near = difflib.get_close_matches(name, presets(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`vlmkit presets` lists them; a path starts with ./ or /"
    raise PresetError(f"no preset named {name[:200]!r}", hint=hint)


def _alone(found: Found) -> Found:
    """One plugin's, or nobody's: what two plugins offer is not decided by the order in which they came."""
    owners = [owner for owner, folder in installed() if owner != "vlmkit" and within(folder, found.name, owner)]
    if found.owner in owners and len(owners) > 1:
        packages = plugins.default().packages
        told = " and ".join(f"{owner} ({packages.get(owner, 'this process')})" for owner in owners)
        raise PluginConflictError(f"two plugins offer a preset named {found.name!r}: {told}",
                                  hint="uninstall one, or set VLMKIT_PLUGINS to those that should load")
    return found


def within(folder: Path, name: str, owner: str) -> Found | None:
    """`<folder>/<name>.yaml`, or `<folder>/<name>/preset.yaml`."""
    if not NAME.fullmatch(name):
        return None
    for path in (folder / f"{name}.yaml", folder / name / WHOLE):
        if _is_file(path):
            return Found(name, path, folder, owner)
    return None


def every() -> list[Found]:
    """All presets that have a name, in lookup order; a later one of the same name is shadowed by the first."""
    return [found for owner, folder in folders() for found in _inside(folder, owner)]


def presets() -> dict[str, Path]:
    """Name -> file, in lookup order."""
    names: dict[str, Path] = {}
    for found in every():
        names.setdefault(found.name, found.path)
    return names


def _inside(folder: Path, owner: str) -> list[Found]:
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    whole = {path.parent for path in files if path.name == WHOLE and path.parent != folder}
    found = []
    for path in files:
        if path.parent in whole:
            if path.name == WHOLE:
                found.append(Found(path.parent.relative_to(folder).as_posix(), path, folder, owner))
        else:
            found.append(Found(path.relative_to(folder).with_suffix("").as_posix(), path, folder, owner))
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file system takes
        return False


def _file(path: Path) -> Found:
    if not _is_file(path):
        path, given = path / WHOLE, path
        if not _is_file(path):
            hint = "a preset is a regular file" if os.path.exists(given) else f"the current folder is {Path.cwd()}"
            raise PresetError("there is no such preset file", where=str(given)[:300], hint=hint)
    name = path.absolute().parent.name if path.name == WHOLE else path.stem
    return Found(name, path, path.parent, "file")
