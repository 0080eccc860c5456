"""One part by its name, or all that a package ships."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator

from .. import plugins, registry
from ..errors import PluginContractError, PluginError
from ..hookspecs import PROJECT
from ..plugins import Manager, alike
from ..registry import Entry
from .outcomes import Outcome, examine


def check_part(kind: str, name: str) -> list[Outcome]:
    """Every check of that kind on one part; raises PluginContractError with all that fail."""
    found = list(examine(registry.find(kind, name)))
    complain(found, f"{kind} {name}")
    return found


def complain(outcomes: Iterable[Outcome], where: str) -> None:
    """Raise when one of them failed."""
    if broken := [outcome for outcome in outcomes if outcome.state == "failed"]:
        rows = "\n".join(f"  {outcome.check}: {outcome.promise} But: {outcome.said}" for outcome in broken)
        raise PluginContractError(f"{len(broken)} of its promises are broken\n{rows}", where=where)


def parts_of(package: str) -> list[Entry]:
    """The parts of one plugin, by its own name or its distribution's."""
    names = _owners(package)
    return [entry for entry in registry.entries() if entry.plugin in names]


def presets_of(package: str) -> Iterator[str]:
    """Names of the presets that a plugin ships."""
    names = _owners(package)
    for owner, folder in plugins.default().presets:
        if owner in names:
            yield from (path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml")))


def _owners(package: str) -> set[str]:
    manager, wanted = plugins.default(), alike(package)
    names = {name for name, said in manager.packages.items() if wanted in (alike(name), alike(said.partition(" ")[0]))}
    if not names:
        lost = [str(b) for b in manager.broken if wanted in (alike(b.plugin), alike(b.package.partition(" ")[0]))]
        raise PluginError(lost[0] if lost else _missing(package, manager))
    return names


def _missing(package: str, manager: Manager) -> str:
    """Why there is no such plugin: it was not let in, says nothing to vlmkit, or is not installed."""
    installed = {alike(dist.name): dist for dist in importlib.metadata.distributions()}.get(alike(package))
    ours = [entry.name for entry in installed.entry_points if entry.group == PROJECT] if installed else []
    if left := [name for name in manager.left_out if name in ours or alike(name) == alike(package)]:
        return f"VLMKIT_PLUGINS leaves out {left[0]}"
    if installed and not ours:
        return f"{installed.name} {installed.version} is installed and has no entry point in the group `{PROJECT}`"
    known = sorted({said.partition(" ")[0] for said in manager.packages.values()})
    return f"no plugin named {package!r}; there are: {', '.join(known)}"
