"""The table (kind, name) -> part. A dictionary with good error messages, nothing more."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import plugins
from .contracts import PartConfig
from .errors import PluginConflictError, PluginContractError, PluginError, VlmkitError, clean
from .hookspecs import KINDS
from .plugins import Manager, log


@dataclass(frozen=True)
class Entry:
    """A part that can be used. Its module is imported when `config`, `build` or `example` is first asked for."""

    kind: str
    name: str
    plugin: str
    module: str
    given: tuple[type[PartConfig], Callable[..., Any]] | None = field(default=None, repr=False)
    instead: str = ""  # of one that will go: what to use

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"

    @property
    def config(self) -> type[PartConfig]:
        if self.instead and self not in _told:
            _told.add(self)
            log.warning("%s %s, of plugin %s, will go; use %s", self.kind, self.name, self.plugin, self.instead)
        config = self.given[0] if self.given else self._get("Config")
        if not (isinstance(config, type) and issubclass(config, PartConfig)):
            raise PluginContractError("Config must be a subclass of PartConfig", where=self.module)
        return config

    @property
    def build(self) -> Callable[..., Any]:
        make = self.given[1] if self.given else self._get("build")
        if not callable(make):
            raise PluginContractError("build must be a function", where=self.module)
        return make

    @property
    def example(self) -> dict[str, Any]:
        """The smallest section that works."""
        return {} if self.given else dict(self._get("EXAMPLE"))

    @property
    def summary(self) -> str:
        """First line of the module's docstring, read without importing it."""
        if self.given:
            return (self.given[0].__doc__ or "").strip().partition("\n")[0]
        try:
            spec = importlib.util.find_spec(self.module)
            if spec is None or spec.origin is None:
                return f"there is no module {self.module}"
            text = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
        except Exception as error:  # of a list nothing may be missing because one part is broken
            return " ".join(f"cannot be read: {clean(error)}".split())
        return f"use {self.instead}: " * bool(self.instead) + text.partition("\n")[0]

    def _get(self, attribute: str) -> Any:
        where = f"{self.kind} {self.name}, from plugin {self.plugin}"
        try:
            module = importlib.import_module(self.module)
        except VlmkitError:
            raise
        except Exception as error:
            package = plugins.default().packages.get(self.plugin, "")
            hint = plugins.install_line(error, package)
            raise PluginError(f"cannot be imported: {clean(error)}" + (f"; {hint}" if hint else ""),
                              where=where, hint=hint) from error  # fmt: skip
        if not hasattr(module, attribute):
            raise PluginContractError(f"{self.module} has no {attribute}", where=where)
        return getattr(module, attribute)


_added: dict[tuple[str, str], Entry] = {}
_told: set[Entry] = set()  # of whose going was told


def add(kind: str, name: str, config: type[PartConfig], build: Callable[..., Any]) -> Entry:
    """Offer a part for the rest of this process, such as from a notebook; adding it again replaces it."""
    for entry in entries(kind):
        if entry.name == name and not entry.given:
            raise PluginConflictError(f"there is a {kind} named {name!r} already, from plugin {entry.plugin}")
    config.builder = build
    _added[kind, name] = Entry(kind, name, "added here", config.__module__, (config, build))
    return _added[kind, name]


def entries(kind: str | None = None, manager: Manager | None = None) -> list[Entry]:
    """All parts of a kind, or of every kind, by name."""
    if kind is not None and kind not in KINDS:
        raise PluginError(f"no kind named {kind!r}{nearest(kind, KINDS)}", hint=f"there are: {', '.join(KINDS)}")
    offered = (manager or plugins.default()).parts
    found = [Entry(part.kind, part.name, plugin, part.module, None, part.instead) for plugin, part in offered
             if kind in (None, part.kind)]
    found += [entry for entry in _added.values() if kind in (None, entry.kind)]
    return sorted(found, key=lambda e: (KINDS.index(e.kind), e.name, e.plugin))


def names(kind: str, manager: Manager | None = None) -> list[str]:
    return sorted({entry.name for entry in entries(kind, manager)})


def find(kind: str, name: str, manager: Manager | None = None) -> Entry:
    """The part of that name. Two owners are refused, and a missing one comes with what there is."""
    found = [entry for entry in entries(kind, manager) if entry.name == name]
    if len(found) > 1:
        packages = (manager or plugins.default()).packages
        owners = " and ".join(f"{entry.plugin} ({packages.get(entry.plugin, 'this process')})" for entry in found)
        raise PluginConflictError(f"two plugins offer a {kind} named {name!r}: {owners}",
                                  hint="uninstall one, or set VLMKIT_PLUGINS to those that should load")  # fmt: skip
    if not found:
        known = names(kind, manager)
        lost = "; ".join(f"plugin {b.plugin} is broken: {b.reason}" for b in (manager or plugins.default()).broken)
        raise PluginError(f"no {kind} named {name!r}; there are: {', '.join(known) or 'none'}"
                          + nearest(name, known) + (f"; {lost}" if lost else ""))  # fmt: skip
    return found[0]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, when something is near enough."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
