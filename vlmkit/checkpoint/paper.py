"""What loading would do, on paper: which folder fills which section, what is missing, left over or unlike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..compose import folder as strangers
from ..compose.bind import bind, compose, unbind
from ..compose.find import every, presets
from ..compose.preset import Into, Preset, Weights
from ..errors import CheckpointMismatchError, WeightsError
from ..model.assemble import assemble
from ..types import Rule, reach
from . import native
from .fetch import fetch, is_hub
from .keys import Plan, Table, compare
from .quantize import quantize
from .tensors import Stored, headers

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.vlm import VLM

SECTIONS: tuple[str, ...] = Into.__args__  # type: ignore[attr-defined]
PACKED = {"I8": "int8", "U8": "nf4"}  # what matrices of such numbers are, in a folder of ours
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
    wanted: dict[str, Tensor]  # what the skeleton holds, on meta
    origins: list[Origin]
    random: list[str]  # sections that start from random weights
    notes: list[str]

    def lines(self) -> list[str]:
        """`rows` as a table, then what else there is to say."""
        rows = [("section", "tensors", "numbers", "stored as", "from"), *self.rows()]
        a, b, c, d = (max(len(row[at]) for row in rows) for at in range(4))
        return [f"{r[0]:<{a}}  {r[1]:>{b}}  {r[2]:>{c}}  {r[3]:<{d}}  {r[4]}" for r in rows] + self.notes

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Each section: how many tensors and numbers, how the numbers are stored, and where they come from."""
        sections: dict[str, dict[str, int]] = {}
        for name, tensor in self.wanted.items():
            sections.setdefault(part_of(name), {})[name] = tensor.numel()
        rows = [self._row(section, sizes) for section, sizes in sections.items()]
        if spare := [origin.stored[name] for origin in self.origins for name in origin.plan.spare]:
            rows.append(("never run", f"{len(spare):,}", f"{sum(row.numbers for row in spare):,}", "", "left on disk"))
        return rows

    def _row(self, section: str, sizes: dict[str, int]) -> tuple[str, str, str, str, str]:
        kinds, homes = set[str](), dict[str, None]()
        for origin in self.origins:
            if own := [origin.plan.pieces[name] for name in sizes if name in origin.plan.pieces]:
                kinds |= {origin.stored[theirs].dtype for piece in own for theirs in piece.names}
                homes[f"{origin.folder} ({origin.format})"] = None
        numbers = f"{sum(sizes.values()):,}"
        return section, f"{len(sizes):,}", numbers, ", ".join(sorted(kinds)), ", ".join(homes) or "random"


def paper(source: str | Path | Preset, *overrides: str, verify: bool = True, attention: str = "auto") -> Paper:
    """Compose, fetch, compare. Raises CheckpointMismatchError with every difference at once."""
    preset, known = _compose(source, overrides)
    preset, notes = _informed(preset, known)
    if verify:
        for folder in _own(preset):
            native.verify(folder)
    skeleton = assemble(preset, attention)
    if how := _stored_quantized(preset):
        quantize(skeleton, how)
    wanted = skeleton.state_dict()
    origins = [_origin(entry, preset, skeleton, wanted) for entry in preset.weights]
    random = _random(preset, wanted)
    _complain(skeleton, wanted, origins, random)
    return Paper(preset, skeleton, wanted, origins, random, notes)


def _stored_quantized(preset: Preset) -> str | None:
    """How a folder that vlmkit wrote keeps the decoder's matrices: their numbers and the scales beside them tell."""
    for folder in _own(preset):
        stored = headers(folder)
        scaled = [name.removesuffix("scale") + "weight" for name in stored if name.endswith(".scale")]
        kinds = {stored[name].dtype for name in scaled if name in stored and name.startswith("decoder.")}
        if found := kinds & PACKED.keys():
            return PACKED[found.pop()]
    return None


def _own(preset: Preset) -> list[Path]:
    """The folders that vlmkit wrote."""
    entries = [entry for entry in preset.weights if entry.format == "native"]
    return [folder for entry in entries if native.is_native(folder := home(entry.from_, entry.revision))]


def part_of(name: str) -> str:
    """The section a tensor belongs to."""
    return max((s for s in SECTIONS if name.startswith(s + ".")), key=len, default=name.partition(".")[0])


def home(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder a `from` means; a hub id is fetched, with its weights or without."""
    path = Path(name)
    if path.is_dir():
        return path
    if not is_hub(name):
        shipped = presets().get(name)  # a preset that lies in a folder with its weights, such as `tiny`
        return shipped.parent if shipped and native.is_native(shipped.parent) else path
    return fetch(name if revision is None else f"{name.partition('@')[0]}@{revision}", weights)


def _compose(source: str | Path | Preset, overrides: tuple[str, ...]) -> tuple[Preset, Path | None]:
    """The preset, and the folder that was asked for, whose own numbers are in it already."""
    if isinstance(source, Preset):
        return compose(source, *overrides) if overrides else source, None
    text = str(source)
    known = not isinstance(source, Path) and (text in presets() or text.endswith((".yaml", ".yml")))
    if not known and not Path(text).expanduser().exists() and is_hub(text):
        text = str(home(text))
    path = Path(text).expanduser()
    if known or not path.is_dir():
        return compose(text, *overrides), None
    if not native.is_native(path) and not strangers.format_of(path):
        raise WeightsError("is in no layout that vlmkit knows", where=path,
                           hint=f"it has neither {native.PRESET} with {native.LOCK} nor a config.json of a known model")
    return compose(str(path.absolute()), *overrides), path


def _informed(preset: Preset, known: Path | None) -> tuple[Preset, list[str]]:
    """The preset with the numbers that the folders of its weights state; words and files of the user's own win.

    known   a folder whose numbers are in the preset already
    """
    notes: list[str] = []
    for entry in preset.weights:
        if entry.format == "native":
            continue
        folder = home(entry.from_, entry.revision)
        if not strangers.make(entry.format).recognise(folder):
            looks = "native" if native.is_native(folder) else strangers.format_of(folder)
            if looks or (folder / "config.json").exists():
                raise WeightsError(f"is no folder of format {entry.format}", where=folder,
                                   hint=f"it looks like: {looks or 'nothing known'}")
            continue  # bare files say nothing about themselves; their names are compared all the same
        told = strangers.describe(folder, entry.format)
        notes += told.notes
        if known is not None and len(preset.weights) == 1 and folder.absolute() == known.absolute():
            continue
        shipped = {found.path.name for found in every() if found.installed}
        preset = bind(strangers.corrected(unbind(preset), preset, told, shipped, entry.into))
    return preset, notes


def _origin(entry: Weights, preset: Preset, skeleton: VLM, wanted: dict[str, Tensor]) -> Origin:
    folder = home(entry.from_, entry.revision)
    for name in entry.into:
        if name != "separators" and reach(skeleton, name) is None:
            raise WeightsError(f"fills {name}, which this model does not have", where=folder,
                               hint="take it out of `into`")
    if entry.format == "native" and not native.is_native(folder):
        raise WeightsError(f"holds no {native.PRESET} with {native.LOCK}", where=folder)
    stored = headers(folder)
    if entry.format == "native":
        rules = [Rule(f"{name}.{{p}}", f"{name}.{{p}}") for name in entry.into] or [Rule("{p}", "{p}")]
    else:
        rules = strangers.make(entry.format).rules(preset, stored)
        rules = [rule for name in entry.into for rule in _into(rules, name)] if entry.into else rules
    plan = compare(Table(rules), stored, wanted, lambda name: _spare(skeleton, name))
    if entry.into:
        plan = plan._replace(unknown=[])
    return Origin(folder, entry.format, plan, stored)


def _into(rules: list[Rule], section: str) -> list[Rule]:
    """The rules that fill a section. Where none does, a part from elsewhere may: a `tower` fills `video.tower`, too."""
    own = f"{section}."
    if any(rule.ours and rule.ours.startswith(own) for rule in rules):
        return [rule for rule in rules if rule.ours is None or rule.ours.startswith(own)]
    leaf = f"{section.rpartition('.')[2]}."
    return [rule._replace(ours=own + rule.ours.removeprefix(leaf)) for rule in rules
            if rule.ours and rule.ours.startswith(leaf)]


def _spare(model: VLM, name: str) -> bool:
    """Whether a name of ours is of a tower's block behind the layer that is read, of what follows the blocks, or a
    separator that no packer lays.
    """
    if name.startswith("separators."):
        return True
    for path, tower in (("tower.", model.tower), ("image.tower.", model.image and model.image.tower),
                        ("video.tower.", model.video and model.video.tower)):
        if tower and tower.unused and name.startswith(path):
            found = re.match(r"\w+\.blocks\.(\d+)\.", name.removeprefix(path))
            return found is None or int(found[1]) >= len(tower.blocks)
    return False


def _random(preset: Preset, wanted: Iterable[str]) -> list[str]:
    """Sections that nobody fills, where every entry says what it fills."""
    if not preset.weights:
        told = "no weights are named"
        raise WeightsError(told, where=f"preset {preset.name}", hint="vlmkit.build(preset) gives random ones")
    if any(not entry.into for entry in preset.weights):
        return []
    filled = {name for entry in preset.weights for name in entry.into}
    return list(dict.fromkeys(part_of(name) for name in wanted if part_of(name) not in filled))


def _complain(skeleton: VLM, wanted: Iterable[str], origins: list[Origin], random: list[str]) -> None:
    filled = {name for origin in origins for name in origin.plan.pieces}
    missing = [n for n in wanted if n not in filled and part_of(n) not in random]
    unknown = [name for origin in origins for name in origin.plan.unknown]
    unlike = [line for origin in origins for line in origin.plan.unlike]
    if missing or unknown or unlike:
        lines = [*_groups("missing", missing), *_groups("left over", unknown),
                 *_groups("of another shape or kind", unlike, whole=True)]
        hint = "the preset and the weights must come from the same model"
        if missing and not unlike:
            hint += "; to start some sections from random weights, let each of `weights` say `into` which it fills"
        hint = next((origin.plan.guess for origin in origins if origin.plan.guess), hint)
        if rows := _rows(origins, skeleton):
            hint = f"their vocabulary has {rows} rows: set decoder.vocab={rows}"
        raise CheckpointMismatchError("does not hold this model\n" + "\n".join(lines), hint=hint,
                                      where=", ".join(str(origin.folder) for origin in origins))


def _rows(origins: list[Origin], skeleton: VLM) -> int:
    """How many rows the stored embedding has, where that is all it differs in."""
    for origin in origins:
        piece = origin.plan.pieces.get("decoder.embed.weight")
        rows, *width = origin.stored[piece.names[0]].shape if piece else (0,)
        if width == [skeleton.decoder.width] and rows != skeleton.decoder.vocab:
            return rows
    return 0


def _groups(title: str, names: Iterable[str], whole: bool = False) -> list[str]:
    """Names by section, the first few of each."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(part_of(name.rpartition(" as ")[2] if whole else name), []).append(name)
    return [f"  {len(found)} {title} in {key}:" + "".join(f"\n    {name}" for name in found[:SHOWN])
            for key, found in groups.items()]
