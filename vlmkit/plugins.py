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
from contextlib import redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

from . import hookspecs
from .errors import PluginConflictError, PluginContractError, PluginError, clean
from .hookspecs import API, KINDS, PROJECT, Part, hookimpl
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
        self.commands: dict[str, list[str]] = {}  # plugin -> what it adds to the command line, once that was made
        self.broken: list[Broken] = []
        self.left_out: list[str] = []  # by VLMKIT_PLUGINS

    def accept(self, plugin: Any, name: str, package: str = "vlmkit") -> None:
        """Register, ask once for all offers, check them; a plugin that fails is taken out as a whole."""
        if self.has_plugin(name):
            owners = f"{self.packages.get(name, 'this process')} and {package}"
            raise PluginConflictError(f"two packages have a plugin named {name!r}: {owners}")
        if (number := getattr(plugin, "vlmkit_api", API)) != API:
            fitting = "a newer vlmkit" if isinstance(number, int) and number > API else f"another {package}"
            raise PluginContractError(f"it was written for plugin API {number!r}, here is {API}; install {fitting}")
        self.register(plugin, name)
        try:
            self.check_pending()
            hooks: Any = self.get_hookcallers(plugin) or []
            found = {h.name: [offer for i in h.get_hookimpls() if i.plugin is plugin for offer in i.function()]
                     for h in hooks if h.name != "vlmkit_commands"}  # fmt: skip
            parts = [_part(offer, name) for offer in found.get("vlmkit_parts", ())]
            folders = [_folder(offer, name) for offer in found.get("vlmkit_presets", ())]
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
    found, manager.left_out = _installed() if entry_points else ([], [])
    for entry in found:
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


def _installed() -> tuple[list[importlib.metadata.EntryPoint], list[str]]:
    """Entry points of group `vlmkit` that VLMKIT_PLUGINS lets in, by name or distribution, and the names of the others.

    Its being empty lets nobody in.
    """
    found = sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: e.name)
    allowed = os.environ.get("VLMKIT_PLUGINS")
    if allowed is None:
        return found, []
    names = {alike(word) for word in allowed.split(",")}
    inside = [e for e in found if names & {alike(e.name), alike(e.dist.name if e.dist else e.name)}]
    return inside, [e.name for e in found if e not in inside]


def alike(name: str) -> str:
    """A name as package indices compare it: vlmkit_Q.former is vlmkit-q-former."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def install_line(error: BaseException, package: str) -> str:
    """`pip install ...` for a module that was not found, with the plugin's own extra where it has one for that."""
    name = (getattr(error, "name", "") or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not NAME.fullmatch(name):
        return ""
    with suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires(package.partition(" ")[0]) or ():
            wanted, extra = NAME.match(line), re.search("""extra == ['"]([^'"]+)""", line)
            if wanted and extra and alike(wanted[0]) == alike(name):
                return f"pip install '{package.partition(' ')[0]}[{extra[1]}]'"
    return f"pip install {alike(name)}"


def _guarded(manager: Manager, load: Callable[[], Any], name: str, package: str) -> None:
    """Load one plugin; its failure is kept, its slowness told, and what it changed for everyone is undone."""
    before = {what: get() for what, (get, _) in _SHARED.items()}
    slow = threading.Timer(current().plugin_warn_s, log.warning, (f"plugin {name} ({package}) is slow to load",))
    slow.daemon = True
    slow.start()
    try:
        with redirect_stdout(sys.stderr):  # standard output belongs to the answer
            manager.accept(load(), name, package)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a plugin may do anything while it is imported, exit included
        reason = " ".join(clean(f"{type(error).__name__}: {error}").split())
        reason += f"; {line}" if (line := install_line(error, package)) else ""
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


def _same(plugin: Any) -> Any:
    return plugin


def _folder(offer: Any, plugin: str) -> Path:
    """An offered folder of presets, checked."""
    if not isinstance(offer, Path) or not offer.is_dir():
        raise PluginContractError(f"vlmkit_presets gives folders as Path, got {offer!r}", where=plugin)
    return offer


def _part(offer: Any, plugin: str) -> Part:
    """An offer, checked against the contract."""
    if not isinstance(offer, Part) or not all(isinstance(word, str) for word in offer):
        raise PluginContractError(f"vlmkit_parts gives Part(kind, name, module), got {offer!r}", where=plugin)
    if offer.kind not in KINDS:
        raise PluginContractError(f"no kind named {offer.kind!r}; there are: {', '.join(KINDS)}", where=plugin)
    if not offer.module:
        raise PluginContractError(f"{offer.kind} {offer.name} names no module", where=plugin)
    if not NAME.fullmatch(offer.name):
        raise PluginContractError(f"{offer.name!r} is no name: letters, digits, - and _ only", where=plugin)
    return offer
