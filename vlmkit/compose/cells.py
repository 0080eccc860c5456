"""The cells of a study: what varies, laid over the study, each a run of its own."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any, NamedTuple

from vlmkit.errors import PresetError, VlmkitError

from .bind import bind, unbind
from .merge import lay, set_words
from .nodes import Node, parse
from .preset import Run
from .study import Study

OWN = ("vary", "seeds", "measure", "jobs")  # what a study says and a run does not


class Cell(NamedTuple):
    """One column of a study: a name and what it lays over the run."""

    name: str
    layers: tuple[dict[str, Any], ...] = ()
    words: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+-]+", "-", self.name, flags=re.ASCII).strip("-.") or "cell"


def cells(study: Study) -> list[Cell]:
    """The cells in their order; the first is what the others are compared with."""
    vary = study.vary
    axes = [[_words({path: value}) for value in values] for path, values in vary.grid.items()]
    if vary.paired:
        axes.append([_words(dict(zip(vary.paired, some, strict=True)))
                     for some in zip(*vary.paired.values(), strict=True)])
    if vary.list_:
        axes.append([Cell(layer["name"], ({k: v for k, v in layer.items() if k != "name"},)) for layer in vary.list_])
    found = [Cell(", ".join(one.name for one in some), sum((one.layers for one in some), ()),
                  sum((one.words for one in some), ())) for some in product(*axes)]
    folders = [cell.folder for cell in found]
    if twice := next((cell.name for cell in found if folders.count(cell.folder) > 1), None):
        raise PresetError(f"two cells are named {twice!r}", where="vary", hint="values of a grid differ in what they "
                          "say; layers of a list in their names")
    return found


def run_of(study: Study, cell: Cell, seed: int) -> Run:
    """A cell with a seed, as a run that `vlmkit train` takes. Raises VlmkitError that names the cell."""
    try:
        tree = unbind(study)
        tree = Node({k: v for k, v in tree.value.items() if k not in OWN}, tree.place)
        for layer in cell.layers:
            tree = lay(tree, parse(json.dumps(layer), f"cell {cell.name}", line=False))
        tree = set_words(tree, [*cell.words, f"seed={seed}"])
        tree.value["name"] = Node(f"{study.name}, {cell.name}", tree.place)
        run = bind(tree)
    except VlmkitError as error:
        raise PresetError(error.what, where=f"cell {cell.name}", hint=error.hint) from None
    assert isinstance(run, Run)
    return run


def _words(values: dict[str, Any]) -> Cell:
    """Some paths and their values; named by what is said last about each."""
    names = (f"{path.rpartition('.')[2]}={_short(value)}" for path, value in values.items())
    return Cell(" ".join(names), words=tuple(f"{path}={json.dumps(value)}" for path, value in values.items()))


def _short(value: Any) -> str:
    """mlp, 300, {use: mlp, depth: 2} as `mlp depth=2`."""
    if not isinstance(value, dict):
        return value if isinstance(value, str) else json.dumps(value).replace(" ", "")
    inner = [f"{key}={_short(child)}" for key, child in value.items() if key != "use"]
    return " ".join([*([str(value["use"])] if "use" in value else []), *inner])
