"""For pytest: `pytest --vlmkit-conformance PACKAGE`. Until the flag is used, this file is all that is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("vlmkit").addoption(
        "--vlmkit-conformance", action="append", default=[], metavar="PACKAGE",
        help="check the parts and presets of an installed vlmkit plugin; without paths, nothing else is run",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--vlmkit-conformance") and config.args_source != pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for package in config.getoption("--vlmkit-conformance"):
        with let_in(package):
            items.extend(_items(session, package))
    session.testscollected = len(items)


def _items(session: pytest.Session, package: str) -> Iterator[pytest.Item]:
    from vlmkit.errors import PluginError

    from . import parts_of, presets_of, promises

    try:
        for entry in parts_of(package):
            for each in promises(entry.kind):
                yield Item.from_parent(session, name=f"{package}::{entry}::{each.name}", package=package,
                                       entry=entry, promise=each)
        for preset in presets_of(package):
            yield Item.from_parent(session, name=f"{package}::preset-{preset}", package=package, preset=preset)
    except PluginError as error:
        raise pytest.UsageError(str(error)) from None


class Item(pytest.Item):
    """One check of one part, or one preset."""

    def __init__(self, *, package: str, entry: Any = None, promise: Any = None, preset: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self.package, self.entry, self.promise, self.preset = package, entry, promise, preset

    def runtest(self) -> None:
        from . import examine, examine_preset

        with let_in(self.package):
            outcome = next(examine(self.entry, self.promise)) if self.entry else examine_preset(self.preset)
        if outcome.state == "skipped":
            pytest.skip(outcome.said)
        if outcome.state == "failed":
            raise AssertionError(f"{outcome.promise}\n  but: {outcome.said}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value) if excinfo.errisinstance(AssertionError) else str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[str, None, str]:
        return self.package, None, self.name


@contextmanager
def let_in(package: str) -> Iterator[None]:
    """Let this package in, whatever VLMKIT_PLUGINS the tests beside it have set."""
    from vlmkit import plugins

    before = os.environ.get("VLMKIT_PLUGINS")
    if before is not None:
        os.environ["VLMKIT_PLUGINS"] = f"{before},{package}"
        plugins.default.cache_clear()
    try:
        yield
    finally:
        if before is not None:
            os.environ["VLMKIT_PLUGINS"] = before
            plugins.default.cache_clear()
