"""One part by its name, or all that a package ships."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .. import plugins, registry
from ..errors import PluginContractError, PluginError
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
    manager = plugins.default()
    wanted = package.lower().replace("_", "-")
    names = {name for name, said in manager.packages.items()
             if wanted in (name.lower().replace("_", "-"), said.split(" ")[0].lower().replace("_", "-"))}
    if not names:
        lost = [str(b) for b in manager.broken if wanted in (b.plugin.lower(), b.package.split(" ")[0].lower())]
        known = sorted({said.split(" ")[0] for said in manager.packages.values()})
        raise PluginError(lost[0] if lost else f"no plugin named {package!r}; there are: {', '.join(known)}")
    return names
