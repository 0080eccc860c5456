"""Who offers parts and presets: built-in folders, then installed packages, through the same three hooks."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

from . import hookspecs
from .errors import PluginContractError, PluginError, clean
from .hookspecs import KINDS, PROJECT, Part, hookimpl
from .limits import current

log = logging.getLogger("vlmkit")

FOLDERS = ("towers", "projectors", "packers", "decoders", "attention", "chats", "tilers", "samplers", "formats",
           "datasets", "metrics")  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Broken(NamedTuple):
    """A plugin that could not be loaded; everything that does not need it works."""

    plugin: str
    package: str  # name and version of the distribution
    reason: str

    def __str__(self) -> str:
        return (f"plugin {self.plugin} ({self.package}) cannot be loaded: {self.reason}; "
                "VLMKIT_PLUGINS lists those that should be")  # fmt: skip


class Manager(pluggy.PluginManager):
    """Pluggy's, with what the plugins offered and those that are broken."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(hookspecs)
        self.parts: list[tuple[str, Part]] = []  # with the plugin's name
        self.presets: list[tuple[str, Path]] = []
        self.packages: dict[str, str] = {}  # plugin -> distribution and version
        self.broken: list[Broken] = []

    def accept(self, plugin: Any, name: str, package: str = "vlmkit") -> None:
        """Register, ask once for all offers, check them; a plugin that fails is taken out as a whole."""
        self.register(plugin, name)
        try:
            self.check_pending()
            hooks = self.get_hookcallers(plugin) or []
            found = {h.name: [offer for i in h.get_hookimpls() if i.plugin is plugin for offer in _call(i.function)]
                     for h in hooks if h.name != "vlmkit_commands"}  # fmt: skip
            parts = [_part(offer, name) for offer in found.get("vlmkit_parts", ())]
            folders = [Path(folder) for folder in found.get("vlmkit_presets", ())]
        except BaseException:
            self.unregister(plugin)
            raise
        self.packages[name] = package
        self.parts += [(name, part) for part in parts]
        self.presets += [(name, folder) for folder in folders]

    def insist(self) -> None:
        """For `--strict-plugins`: a broken plugin is an error."""
        if self.broken:
            raise PluginError("\n".join(map(str, self.broken)))


class Shipped:
    """The presets that come with vlmkit: inside the wheel, or at the top of a checkout."""

    @hookimpl
    def vlmkit_presets(self) -> Iterable[Path]:
        inside = Path(str(importlib.resources.files("vlmkit"))) / "presets"
        beside = Path(__file__).resolve().parent.parent / "presets"
        return [folder for folder in (inside, beside) if folder.is_dir()][:1]


def make_manager(entry_points: bool = True, plugins: Iterable[Any] = ()) -> Manager:
    """A fresh manager: built-in parts and presets, then installed plugins, then the given modules or objects."""
    manager = Manager()
    for folder in FOLDERS:
        if (spec := importlib.util.find_spec(f"vlmkit.parts.{folder}")) is not None and spec.origin:
            manager.accept(importlib.import_module(spec.name), f"vlmkit.{folder}")
    manager.accept(Shipped(), "vlmkit")
    for entry in _installed() if entry_points else ():
        dist = entry.dist
        package = f"{dist.name} {dist.version}" if dist else entry.value
        _guarded(manager, entry.load, entry.name, package)
    for plugin in plugins:
        _guarded(manager, partial(_same, plugin), getattr(plugin, "__name__", type(plugin).__name__), "given")
    return manager


@cache
def default() -> Manager:
    """The manager everything uses when none is given. `default.cache_clear()` forgets it."""
    return make_manager()


def _installed() -> list[importlib.metadata.EntryPoint]:
    """Entry points of group `vlmkit`, limited by VLMKIT_PLUGINS; its being empty means none."""
    found = list(importlib.metadata.entry_points(group=PROJECT))
    allowed = os.environ.get("VLMKIT_PLUGINS")
    if allowed is None:
        return found
    names = {word.strip() for word in allowed.split(",")}
    return [e for e in found if names & {e.name, e.dist.name if e.dist else ""}]


def _guarded(manager: Manager, load: Callable[[], Any], name: str, package: str) -> None:
    """Load one plugin; its failure is kept, its slowness told, and what it changed for everyone is undone."""
    before = {what: get() for what, (get, _) in _SHARED.items()}
    slow = threading.Timer(current().plugin_warn_s, log.warning, (f"plugin {name} ({package}) is slow to load",))
    slow.daemon = True
    slow.start()
    try:
        manager.accept(load(), name, package)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a plugin may do anything while it is imported, exit included
        reason = " ".join(clean(f"{type(error).__name__}: {error}").split())
        manager.broken.append(Broken(name, package, reason))
        log.warning("%s", manager.broken[-1])
    finally:
        slow.cancel()
        for what in [what for what, (get, _) in _SHARED.items() if get() != before[what]]:
            _SHARED[what][1](before[what])
            log.warning("plugin %s (%s) changed %s; undone", name, package, what)


def _of(module: str, name: str, default: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Reads and writes a switch of a library that may not be imported yet."""

    def get() -> Any:
        value = getattr(sys.modules.get(module), name, default)
        return str(value() if callable(value) else value)

    def put(before: str) -> None:
        holder: Any = sys.modules[module]
        if name == "get_default_dtype":
            holder.set_default_dtype(getattr(holder, before.removeprefix("torch.")))
        elif name == "is_grad_enabled":
            holder.set_grad_enabled(before == "True")
        else:
            setattr(holder, name, None if before == "None" else int(before))

    return get, put


def _handler(number: int) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: signal.getsignal(number), lambda before: signal.signal(number, before)


_SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the working folder": (os.getcwd, os.chdir),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the handler of SIGINT": _handler(signal.SIGINT),
    "the handler of SIGTERM": _handler(signal.SIGTERM),
    "torch's default dtype": _of("torch", "get_default_dtype", "torch.float32"),
    "torch's gradient mode": _of("torch", "is_grad_enabled", "True"),
    "Pillow's largest picture": _of("PIL.Image", "MAX_IMAGE_PIXELS", str(1024**3 // 4 // 3)),
}


def _call(hook: Any) -> Iterable[Any]:
    offers: Iterable[Any] = hook()
    return offers


def _same(plugin: Any) -> Any:
    return plugin


def _part(offer: Any, plugin: str) -> Part:
    """An offer, checked against the contract."""
    if not isinstance(offer, Part) or not all(isinstance(word, str) for word in offer):
        raise PluginContractError(f"vlmkit_parts gives Part(kind, name, module), got {offer!r}", where=plugin)
    if offer.kind not in KINDS:
        raise PluginContractError(f"no kind named {offer.kind!r}; there are: {', '.join(KINDS)}", where=plugin)
    if not NAME.fullmatch(offer.name):
        raise PluginContractError(f"{offer.name!r} is no name: letters, digits, - and _ only", where=plugin)
    return offer
