"""What there is to say about a preset's weights: which section comes from where, and what their folder changed."""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import vlmkit
from vlmkit.compose.bind import sources
from vlmkit.compose.folder import describe
from vlmkit.compose.say import shown
from vlmkit.errors import VlmkitError

from . import console

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset

OWN = ("name", "about", "weights", "tokenizer.from", "decoder.size")  # these differ between any two folders


class Change(NamedTuple):
    """A value that a folder's own files decide otherwise than the shipped preset."""

    shipped: Any
    here: Any
    file: str


def nearest(preset: Preset) -> str:
    """The shipped preset that stands where a folder of somebody else's says nothing; "" where there is none."""
    for entry in preset.weights:
        if entry.format != "native" and Path(entry.from_).is_dir():
            with suppress(VlmkitError):  # bare files say nothing
                if base := describe(Path(entry.from_), entry.format).base:
                    return base
    return ""


def changes(preset: Preset, base: str) -> dict[str, Change]:
    """Path -> what differs between a shipped preset and this one, but for what only says the same in other words."""
    shipped = vlmkit.compose(base)
    before, now = sources(shipped), sources(preset)
    same = (*OWN, *_restated(shipped, preset))
    return {path: Change(before[path].value if path in before else None, found.value, found.place)
            for path, found in now.items()
            if not path.startswith(same) and (path not in before or before[path].value != found.value)}


def _restated(one: Preset, two: Preset) -> list[str]:
    """Fields of towers that a folder spells out and the shipped model's name means."""
    from vlmkit.model.assemble import assemble

    models, said = (assemble(one), assemble(two)), []
    for path in ("tower", "image.tower", "video.tower"):
        first, second = (attrgetter(path)(model) if "." not in path or getattr(model, path[:5]) else None
                         for model in models)
        if first is None or second is None:
            continue
        shapes = [{name: tensor.shape for name, tensor in t.state_dict().items()} for t in (first, second)]
        said += [f"{path}.{name}" for name in ("mean", "std") if getattr(first, name) == getattr(second, name)]
        said += [f"{path}.options"] * (shapes[0] == shapes[1])
    return said


def tell(base: str, changed: dict[str, Change]) -> None:
    """Print what a folder changed."""
    if not changed:
        return print(f"a {base}: its own files change nothing")
    rows = [(path, _short(c.shipped), _short(c.here), c.file) for path, c in changed.items()]
    console.columns(rows, ("its own files change", base, "here", "file"))


def _short(value: Any) -> str:
    if isinstance(value, str) and (len(value) > 48 or "\n" in value):
        return f"a text of {len(value):,} characters"
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= 48 else text[:47] + "…"
