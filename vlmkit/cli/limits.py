"""vlmkit limits"""

from __future__ import annotations

import os

from vlmkit.limits import resolve, settings

from . import console
from .arguments import Json


def limits(json: Json = False) -> None:
    """How much a file may cost, and where each number comes from.

    Change one with --limit NAME=NUMBER or with the environment: VLMKIT_LIMIT_IMAGE__MAX_PIXELS=1e8.
    """
    found = resolve(os.environ)
    rows = [(setting, *found[name]) for setting, name in settings().items()]
    if json:
        return console.document({setting: {"value": value, "from": place} for setting, value, place in rows})
    shown = [(setting, f"{value:,}".replace(",", " "), place) for setting, value, place in rows]
    console.columns(shown, ("limit", "value", "from"), right=(1,))
