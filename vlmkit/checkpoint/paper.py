"""What loading would do, on paper: which folder fills which section, what is missing, left over or unlike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..compose import folder as strangers
from ..compose.bind import bind, compose, unbind
from ..compose.find import every, presets
from ..compose.preset import Into, Preset, Weights
from ..errors import CheckpointMismatchError, WeightsError
from ..model.assemble import assemble
from ..types import Rule
from . import native
from .keys import Plan, Table, compare
from .tensors import Stored, headers

if TYPE_CHECKING:
    from ..model.vlm import VLM

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
SECTIONS: tuple[str, ...] = Into.__args__  # type: ignore[attr-defined]
SHOWN = 10  # names of a group in a message


class Origin(NamedTuple):
    """One folder of weights, what it fills, and how its names become ours."""

    folder: Path
    format: str
    plan: Plan
    stored: dict[str, Stored]

    @property
    def taken(self) -> dict[str, Stored]:
        """The stored tensors that are read."""
        return {name: self.stored[name] for piece in self.plan.pieces.values() for name in piece.names}


class Paper(NamedTuple):
    preset: Preset
    skeleton: VLM
    origins: list[Origin]
    random: list[str]  # sections that start from random weights
    notes: list[str]

    def lines(self) -> list[str]:
        """Section by section: where it comes from, and how much."""
        sizes = Counter[str]()
        source: dict[str, str] = dict.fromkeys(self.random, "random")
        for origin in self.origins:
            for name, piece in origin.plan.pieces.items():
                sizes[part_of(name)] += sum(origin.stored[theirs].numbers for theirs in piece.names)
                source[part_of(name)] = f"{origin.folder} ({origin.format})"
        said = [f"{name:<16} {sizes[name]:>16,}   {where}" for name, where in source.items()]
        spare = sum(o.stored[n].numbers for o in self.origins for n in o.plan.spare)
        return said + ([f"{'never run':<16} {spare:>16,}   left on disk"] if spare else []) + self.notes


def paper(source: str | Path | Preset, *overrides: str, verify: bool = True) -> Paper:
    """Compose, fetch, compare. Raises CheckpointMismatchError with every difference at once."""
    preset, notes = _informed(_compose(source, overrides))
    skeleton = assemble(preset)
    origins = [_origin(entry, preset, skeleton, verify) for entry in preset.weights]
    random = _random(preset, skeleton)
    _complain(preset, skeleton, origins, random)
    return Paper(preset, skeleton, origins, random, notes)


def part_of(name: str) -> str:
    """The section a tensor belongs to."""
    return max((s for s in SECTIONS if name.startswith(s + ".")), key=len, default=name.partition(".")[0])


def home(name: str, revision: str | None = None) -> Path:
    """The folder a `from` means; a hub id is fetched."""
    path = Path(name)
    if path.is_dir() or not HUB.fullmatch(name):
        return path
    from .fetch import fetch

    return fetch(name if revision is None else f"{name.partition('@')[0]}@{revision}")


def _compose(source: str | Path | Preset, overrides: tuple[str, ...]) -> Preset:
    if isinstance(source, Preset):
        return compose(source, *overrides) if overrides else source
    text = str(source)
    known = not isinstance(source, Path) and (text in presets() or text.endswith((".yaml", ".yml")))
    if not known and not Path(text).expanduser().exists() and HUB.fullmatch(text):
        text = str(home(text))
    path = Path(text).expanduser()
    if known or not path.is_dir():
        return compose(text, *overrides)
    if not native.is_native(path) and not strangers.format_of(path):
        raise WeightsError("is in no layout that vlmkit knows", where=path,
                           hint=f"it has neither {native.PRESET} with {native.LOCK} nor a config.json of a known model")
    return compose(str(path.absolute()), *overrides)


def _informed(preset: Preset) -> tuple[Preset, list[str]]:
    """The preset with the numbers that the folders of its weights state; words and files of the user's own win."""
    notes: list[str] = []
    shipped = {found.path.name for found in every() if found.installed}
    for entry in preset.weights:
        if entry.format == "native":
            continue
        folder = home(entry.from_, entry.revision)
        if not strangers.make(entry.format).recognise(folder):
            raise WeightsError(f"is no folder of format {entry.format}", where=folder,
                               hint=f"it looks like: {strangers.format_of(folder) or 'nothing known'}")
        told = strangers.describe(folder, entry.format)
        notes += told.notes
        preset = bind(strangers.corrected(unbind(preset), preset, told, shipped))
    return preset, notes


def _origin(entry: Weights, preset: Preset, skeleton: VLM, verify: bool) -> Origin:
    folder = home(entry.from_, entry.revision)
    if entry.format == "native" and not native.is_native(folder):
        raise WeightsError(f"holds no {native.PRESET} with {native.LOCK}", where=folder)
    if entry.format == "native" and verify:
        native.verify(folder)
    stored = headers(folder)
    rules = [Rule("{p}", "{p}")] if entry.format == "native" else strangers.make(entry.format).rules(preset, stored)
    plan = compare(Table(rules), stored, skeleton.state_dict(), lambda name: _spare(skeleton, name))
    if entry.into:
        kept = {ours: piece for ours, piece in plan.pieces.items() if part_of(ours) in entry.into}
        unlike = [line for line in plan.unlike if part_of(line.rpartition(" as ")[2]) in entry.into]
        plan = plan._replace(pieces=kept, unlike=unlike, unknown=[], spare=[])
    return Origin(folder, entry.format, plan, stored)


def _spare(model: VLM, name: str) -> bool:
    """Whether a name of ours is of a tower's block behind the layer that is read, or of what follows the blocks."""
    for path, tower in (("tower.", model.tower), ("image.tower.", model.image and model.image.tower),
                        ("video.tower.", model.video and model.video.tower)):
        if tower and tower.unused and name.startswith(path):
            found = re.match(r"\w+\.blocks\.(\d+)\.", name.removeprefix(path))
            return found is None or int(found[1]) >= len(tower.blocks)
    return False


def _random(preset: Preset, skeleton: VLM) -> list[str]:
    """Sections that nobody fills, where every entry says what it fills."""
    if not preset.weights:
        told = "no weights are named"
        raise WeightsError(told, where=f"preset {preset.name}", hint="vlmkit.build(preset) gives random ones")
    if any(not entry.into for entry in preset.weights):
        return []
    filled = {name for entry in preset.weights for name in entry.into}
    return list(dict.fromkeys(part_of(name) for name in skeleton.state_dict() if part_of(name) not in filled))


def _complain(preset: Preset, skeleton: VLM, origins: list[Origin], random: list[str]) -> None:
    filled = {name for origin in origins for name in origin.plan.pieces}
    missing = [n for n in skeleton.state_dict() if n not in filled and part_of(n) not in random]
    unknown = [name for origin in origins for name in origin.plan.unknown]
    unlike = [line for origin in origins for line in origin.plan.unlike]
    if missing or unknown or unlike:
        lines = [*_groups("missing", missing), *_groups("left over", unknown),
                 *_groups("of another shape or kind", unlike, whole=True)]
        hint = "the preset and the weights must come from the same model"
        if missing and not unlike:
            hint += "; to start some sections from random weights, let each of `weights` say `into` which it fills"
        raise CheckpointMismatchError("does not hold this model\n" + "\n".join(lines), hint=hint,
                                      where=", ".join(str(origin.folder) for origin in origins))


def _groups(title: str, names: Iterable[str], whole: bool = False) -> list[str]:
    """Names by section, the first few of each."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(part_of(name.rpartition(" as ")[2] if whole else name), []).append(name)
    return [f"  {len(found)} {title} in {key}:" + "".join(f"\n    {name}" for name in found[:SHOWN])
            for key, found in groups.items()]
