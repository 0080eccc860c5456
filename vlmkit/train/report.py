"""A study side by side: means and spread over seeds, differences in pairs of one seed, plots, and what differs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..checkpoint.whole import writing
from ..compose.bind import sources
from ..compose.cells import cells, run_of
from ..compose.study import Study
from ..errors import VlmkitError

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
COSTS = {  # heading -> (key of a result, how it is written)
    "tokens shown": ("visual", "{:.1f}"), "parameters": ("parameters", "{:,.0f}"), "s a step": ("step_s", "{:.3f}"),
    "MFLOP a question": ("flops", "{:.1f}"), "ms a question": ("answer_ms", "{:.1f}"),
    "memory, MB": ("memory", "{:.0f}"), "loss": ("loss", "{:.3f}"),
}  # fmt: skip
SCALE = {"flops": 1e-6, "memory": 1e-6}
Row = Mapping[str, Any]


class Spread(NamedTuple):
    """Mean and sample standard deviation; half of the 95 % interval of the mean, by Student's t. None of one value."""

    mean: float
    deviation: float | None
    half: float | None


def spread(values: Sequence[float]) -> Spread:
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Spread(mean, None, None)
    deviation = statistics.stdev(values)
    return Spread(mean, deviation, (T[n - 2] if n - 2 < len(T) else 1.96) * deviation / n**0.5)


def paired(ones: Mapping[int, float], others: Mapping[int, float]) -> Spread | None:
    """The second minus the first, seed by seed; None where they share no seed."""
    seeds = [seed for seed in ones if seed in others]
    return spread([others[seed] - ones[seed] for seed in seeds]) if seeds else None


def scores(rows: Sequence[Row], cell: str, what: str) -> dict[int, float]:
    """Seed -> score in per cent; `all` is the mean of all sets."""
    found = {row["seed"]: row["scores"] for row in rows if row["cell"] == cell and "scores" in row}
    return {seed: 100 * (statistics.fmean(each.values()) if what == "all" else each[what])
            for seed, each in found.items()}


def measured(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", ())))
    return names if len(names) == 1 else [*names, "all"]


def grid(rows: Sequence[Row]) -> list[list[str]]:
    """Scores: a line for each cell, mean ± deviation, the first line the heads."""
    names = measured(rows)
    lines = [["cell", *names]]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        lines.append([cell, *(_told(spread(list(found.values()))) if (found := scores(rows, cell, name)) else "broke"
                              for name in names)])
    return lines


def differences(rows: Sequence[Row]) -> list[list[str]]:
    """Each cell minus the first, in pairs of one seed: mean and its 95 % interval; * where that leaves out zero."""
    first, *others = dict.fromkeys(row["cell"] for row in rows)
    names = measured(rows)
    lines = [[f"minus {first}", *names]]
    for cell in others:
        found = [paired(scores(rows, first, name), scores(rows, cell, name)) for name in names]
        lines.append([cell, *("-" if one is None else _change(one) for one in found)])
    return lines


def expenses(rows: Sequence[Row]) -> list[list[str]]:
    """What a cell costs, means over seeds."""
    lines = [["cell", *COSTS]]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell and "scores" in row]
        lines.append([cell, *(how.format(SCALE.get(key, 1) * statistics.fmean(row[key] for row in own)) if own else "-"
                              for key, how in COSTS.values())])
    return lines


def configs(study: Study) -> list[list[str]]:
    """The fields in which cells differ."""
    runs = {cell.name: sources(run_of(study, cell, study.seeds[0])) for cell in cells(study)}
    paths = list(dict.fromkeys(path for said in runs.values() for path in said if path != "name"))
    lines = [["field", *runs]]
    for path in paths:
        found = [said[path].value if path in said else "" for said in runs.values()]
        values = ["null" if value is None else str(value) for value in found]
        if len(set(values)) > 1:
            lines.append([path, *values])
    return lines


def table(study: Study, rows: Sequence[Row]) -> str:
    """The whole study as Markdown."""
    seeds = f"{len(study.seeds)} seed{'s' * (len(study.seeds) != 1)}"
    asked = ", ".join(f"{measure.name} ({len(measure.data.build())})" for measure in study.measure)
    parts = [f"# {study.name}", study.about, f"Right answers in per cent, mean ± standard deviation over {seeds}. "
             f"Held-out questions: {asked}.", _markdown(grid(rows))]
    if len({row["cell"] for row in rows}) > 1:
        parts += ["Differences in pairs of one seed, mean and 95 % interval (Student's t); * where it leaves out zero.",
                  _markdown(differences(rows))]
    parts.append(_markdown(expenses(rows)))
    parts += [f"Broke: {row['cell']}, seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(part for part in parts if part) + "\n"


def panels(study: Study, rows: Sequence[Row], plot: Image.Image | None) -> list[tuple[str, str, Any]]:
    """Heading, words and what is shown, for a page."""
    shown: list[tuple[str, str, Any]] = [
        ("Right answers", f"Per cent, mean ± standard deviation over {len(study.seeds)} seeds.", grid(rows)),
        ("Against the first", "In pairs of one seed: mean, 95 % interval; * where it leaves out zero.",
         differences(rows)),
        ("What it costs", "Means over seeds. Tokens, operations and time of reading one question.", expenses(rows)),
        ("What differs", "The fields of the presets that are not the same in all cells.", configs(study)),
    ]  # fmt: skip
    if plot:
        shown.insert(1, ("Accuracy against cost", "The bars are standard deviations over seeds.", plot))
    if broken := [[row["cell"], str(row["seed"]), row["error"]] for row in rows if "error" in row]:
        shown.append(("What broke", "Cell, seed, last line of its output.", broken))
    return shown


def plot(rows: Sequence[Row], out: Path) -> Image.Image | None:
    """Accuracy against tokens and against the time of a step, as `out/plot.svg` and as a picture; None of nothing."""
    figure = drawing()
    names = [cell for cell in dict.fromkeys(row["cell"] for row in rows) if scores(rows, cell, "all")]
    if not names:
        return None
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, words in zip(axes, ("visual", "step_s"), ("tokens shown a question", "seconds a step"), strict=True):
        for cell in names:
            at = statistics.fmean(row[key] for row in rows if row["cell"] == cell and "scores" in row)
            score = spread(list(scores(rows, cell, "all").values()))
            axis.errorbar(at, score.mean, yerr=score.deviation, marker="o", capsize=3, label=cell)
        axis.set_xlabel(words)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("right, %")
    axes[1].legend(fontsize=8)
    figure.savefig(out / "plot.svg", metadata={"Date": None})
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=160)
    return Image.open(held).convert("RGB")


def drawing() -> Any:
    """An empty figure; matplotlib is asked for before a study starts, so that it is not missed at its end."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise VlmkitError("plots need matplotlib", where="ablate", hint="pip install 'vlmkit[train]'") from None
    matplotlib.rcParams["svg.hashsalt"] = "vlmkit"  # the same study, the same file
    return Figure(figsize=(10, 4), layout="constrained")


def write(study: Study, rows: Sequence[Row], out: Path) -> Image.Image | None:
    """`table.md` and `plot.svg` in a folder; gives the plot."""
    with writing(out / "table.md") as file:
        file.write(table(study, rows))
    return plot(rows, out)


def _told(one: Spread) -> str:
    return f"{one.mean:.1f}" + (f" ± {one.deviation:.1f}" if one.deviation is not None else "")


def _change(one: Spread) -> str:
    if one.half is None:
        return f"{one.mean:+.1f}"
    low, high = one.mean - one.half, one.mean + one.half
    return f"{one.mean:+.1f} [{low:+.1f}, {high:+.1f}]{'*' * (low > 0 or high < 0)}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [["|".join(("", *(f" {cell} " for cell in row), ""))] for row in lines]
    rule = "|---" + "|--:" * (len(lines[0]) - 1) + "|"
    return "\n".join([head[0], rule, *(row[0] for row in rest)])
