"""Plugins come through one door; a broken one is kept as a record and everything else works."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit import plugins, registry
from vlmkit.compose.bind import compose
from vlmkit.errors import PluginConflictError, PluginError, PresetValueError
from vlmkit.hookspecs import KINDS, Part, hookimpl
from vlmkit.limits import Limits

GOOD = '''"""A plugin."""
from vlmkit.hookspecs import Part, hookimpl
@hookimpl
def vlmkit_parts():
    return [Part("projector", "{name}", "{module}.part")]
'''
PART = '''"""Twice the identity."""
from vlmkit.contracts import PartConfig
class Config(PartConfig):
    times: int = 2
def build(config, *, width, out):
    return config.times
EXAMPLE = {"times": 3}
'''


@pytest.fixture
def install(site: Path) -> Callable[..., None]:
    """Lay a distribution with an entry point on the path, as an installer would."""

    def lay(module: str, text: str | None = None, part: str = PART, name: str = "") -> None:
        package = site / module
        package.mkdir()
        (package / "__init__.py").write_text(text or GOOD.format(name=name or module, module=module))
        (package / "part.py").write_text(part)
        info = site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[vlmkit]\n{module} = {module}\n")

    return lay


def test_the_built_in_parts_come_through_the_same_door() -> None:
    manager = plugins.make_manager(entry_points=False)
    assert not manager.broken
    names = {part.name for _, part in manager.parts}
    assert {"timm", "mlp", "flat", "transformer", "turns", "square", "uniform", "sdpa"} <= names
    assert {owner for owner, _ in manager.presets} == {"vlmkit"}


def test_an_installed_plugin(install: Callable[..., None]) -> None:
    install("vk_good")
    manager = plugins.make_manager()
    entry = registry.find("projector", "vk_good", manager)
    assert "vk_good.part" not in sys.modules  # its name and its summary cost no import of the part
    assert (entry.plugin, entry.summary) == ("vk_good", "Twice the identity.")
    assert "vk_good.part" not in sys.modules
    assert entry.config(times=4).build(width=1, out=1) == 4
    assert entry.example == {"times": 3}
    assert manager.packages["vk_good"] == "vk-good 1.2"


def test_the_allow_list(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vk_one", "vk_two", "vk_three"):
        install(name)
    for value, wanted in (("vk_one,vk-three", {"vk_one", "vk_three"}), ("", set()), ("nobody", set())):
        monkeypatch.setenv("VLMKIT_PLUGINS", value)
        names = registry.names("projector", plugins.make_manager())
        assert {name for name in names if name.startswith("vk_")} == wanted


HOOK = "from vlmkit.hookspecs import hookimpl\n@hookimpl\ndef {}: return []"
TUPLE = GOOD.replace("Part(", "tuple(").replace('"projector", "{name}", "{module}.part"', '"abc"')

BROKEN = {
    "raises": ("raise RuntimeError('no such device')", "RuntimeError: no such device"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "misses a library": ("import a_library_nobody_has", "ModuleNotFoundError"),
    "is not Python": ("def f(:", "SyntaxError"),
    "misspells a hook": (HOOK.format("vlmkit_prats()"), "vlmkit_prats"),
    "takes other arguments": (HOOK.format("vlmkit_parts(a)"), "vlmkit_parts"),
    "raises in its hook": (GOOD.replace("return", "raise KeyError"), "KeyError"),
    "offers a tuple": (TUPLE, "Part(kind"),
    "offers an unknown kind": (GOOD.replace("projector", "projektor"), "no kind named 'projektor'"),
    "offers a bad name": (GOOD.replace("{name}", "a b"), "'a b' is no name"),
    "gives a number": (GOOD.replace('[Part("projector", "{name}", "{module}.part")]', "7"), "not iterable"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_a_broken_plugin_is_a_record(case: str, install: Callable[..., None], caplog: pytest.LogCaptureFixture,
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    text, said = BROKEN[case]
    module = "vk_bad_" + case.replace(" ", "_").lower()
    install(module, text.replace("{name}", "vk_bad").replace("{module}", module))
    install(f"{module}_good")
    with caplog.at_level(logging.WARNING, "vlmkit"):
        manager = plugins.make_manager()
    (broken,) = [b for b in manager.broken if b.plugin == module]
    assert broken.package == f"{module.replace('_', '-')} 1.2"
    assert said in broken.reason
    assert "\n" not in str(broken)
    assert str(broken) in caplog.text
    assert not [part for owner, part in manager.parts if owner == module]  # taken out as a whole
    assert registry.find("projector", f"{module}_good", manager)
    with pytest.raises(PluginError, match="cannot be loaded"):
        manager.insist()
    monkeypatch.setattr(plugins, "default", lambda: manager)
    compose("llava-1.5-7b")
    with pytest.raises(PresetValueError, match=f"plugin {module} is broken"):
        compose("llava-1.5-7b", "projector=vk_bad")


def test_two_owners_of_a_name_are_both_named(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("vk_left", name="twice")
    install("vk_right", name="twice")
    manager = plugins.make_manager()
    with pytest.raises(PluginConflictError, match=r"vk_left \(vk-left 1\.2\) and vk_right \(vk-right 1\.2\)"):
        registry.find("projector", "twice", manager)
    assert registry.find("projector", "mlp", manager)
    both = [entry.plugin for entry in registry.entries("projector", manager) if entry.name == "twice"]
    assert both == ["vk_left", "vk_right"]
    monkeypatch.setattr(plugins, "default", lambda: manager)
    with pytest.raises(PresetValueError, match=r"projector.use +command line +two plugins offer"):
        compose("llava-1.5-7b", "projector=twice")


def test_a_part_that_breaks_when_it_is_used(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("vk_late", part="import a_library_nobody_has")
    install("vk_empty", part="'''Nothing in here.'''")
    manager = plugins.make_manager()
    monkeypatch.setattr(plugins, "default", lambda: manager)
    with pytest.raises(PresetValueError, match=r"vk_late.*a_library_nobody_has"):
        compose("llava-1.5-7b", "projector=vk_late")
    with pytest.raises(PresetValueError, match="has no Config"):
        compose("llava-1.5-7b", "projector=vk_empty")


def test_what_a_plugin_changes_for_everyone_is_undone(install: Callable[..., None], caplog: pytest.LogCaptureFixture,
                                                      tmp_path: Path) -> None:  # fmt: skip
    import signal

    import PIL.Image
    import torch

    pixels = str(PIL.Image.MAX_IMAGE_PIXELS)
    before = (os.getcwd(), sys.getrecursionlimit(), torch.get_default_dtype(), signal.getsignal(signal.SIGTERM))
    install("vk_rude", "import os, sys, signal, torch, PIL.Image\nos.chdir('/')\nsys.setrecursionlimit(9999)\n"
            "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\nPIL.Image.MAX_IMAGE_PIXELS = 5\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nraise RuntimeError('and then it fails')")  # fmt: skip
    with caplog.at_level(logging.WARNING, "vlmkit"):
        plugins.make_manager()
    after = (os.getcwd(), sys.getrecursionlimit(), torch.get_default_dtype(), signal.getsignal(signal.SIGTERM))
    assert after == before
    assert torch.is_grad_enabled()
    assert str(PIL.Image.MAX_IMAGE_PIXELS) == pixels
    for what in ("the working folder", "the recursion limit", "torch's default dtype", "torch's gradient mode",
                 "Pillow's largest picture", "the handler of SIGTERM"):  # fmt: skip
        assert f"plugin vk_rude (vk-rude 1.2) changed {what}; undone" in caplog.text


def test_a_slow_plugin_is_named(install: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    install("vk_slow", "import time\ntime.sleep(0.5)")
    with caplog.at_level(logging.WARNING, "vlmkit"), Limits(plugin_warn_s=0.05):
        plugins.make_manager()
    assert "plugin vk_slow (vk-slow 1.2) is slow to load" in caplog.text


def test_an_object_can_be_a_plugin() -> None:
    class Mine:
        @hookimpl
        def vlmkit_parts(self) -> list[Part]:
            return [Part(kind, "mine", "nowhere") for kind in KINDS]

    manager = plugins.make_manager(False, [Mine()])
    assert all("mine" in registry.names(kind, manager) for kind in KINDS)


LIGHT = """
import sys, time
start = time.perf_counter()
import vlmkit
took = time.perf_counter() - start
from vlmkit import plugins, registry
from vlmkit.compose import bind, find, merge, nodes, read, references, say
found = [(entry.name, entry.summary) for entry in registry.entries()]
names = find.presets()
heavy = {"torch", "timm", "av", "transformers", "PIL", "numpy", "omegaconf"} & set(sys.modules)
assert not heavy, heavy
assert len(found) > 15 and len(names) > 30 and all(summary for _, summary in found), found
print(took)
"""


def test_finding_and_listing_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False,
                          env={**os.environ, "VLMKIT_PLUGINS": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1  # 0.02 s on an idle machine
