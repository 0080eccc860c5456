"""Every part that comes with vlmkit keeps what its kind promises: the same checks that any plugin is held to."""

from __future__ import annotations

import pytest

from vlmkit import registry
from vlmkit.plugins import make_manager
from vlmkit.registry import Entry
from vlmkit.testing import check_part, promises
from vlmkit.testing.outcomes import MODELS


@pytest.mark.parametrize("entry", registry.entries(manager=make_manager(entry_points=False)), ids=str)
def test_it_keeps_its_promises(entry: Entry) -> None:
    outcomes = check_part(entry.kind, entry.name)
    assert sum(outcome.state == "passed" for outcome in outcomes) > len(outcomes) / 2


def test_a_model_kind_is_held_to_about_thirty() -> None:
    assert {kind: len(promises(kind)) >= 30 for kind in MODELS} == dict.fromkeys(MODELS, True)
    assert all(promise.text.endswith(".") for kind in MODELS for promise in promises(kind))
