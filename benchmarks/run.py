"""Runs every stage as a process of its own and writes the page: docs/benchmarks.md.

    python benchmarks/run.py [--quick] [--device cuda] [--only decode prefill] [--out PAGE]

A stage that fails is named in the page, keeps the rows it gave, and makes the exit status 1; the others go on. What
each stage gave is kept in build/benchmarks/, too: with --only the others stand in the page as they were measured last.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from measure import line

HERE = Path(__file__).parent
ROOT = HERE.parent
NO_STAGE = {"run", "measure", "models", "floor"}
ORDER = ("imports", "build", "load_checkpoint", "pictures", "clips", "ids", "vision", "prefill", "decode",
         "mixed_batch", "turns", "generate")
PACKAGES = ("vlmkit", "torch", "transformers", "timm", "torchvision", "pillow", "av", "tokenizers", "safetensors")
LONGEST = 1200  # seconds of one stage


class Stage(NamedTuple):
    name: str
    about: str
    command: str
    rows: list[dict[str, Any]]
    failed: str  # why, or nothing
    seconds: float
    commit: str


def stages(gpu: bool) -> list[Path]:
    """The scripts, in the order of a request; on a GPU those that take it into account."""
    found = [path for path in HERE.glob("*.py") if path.stem not in NO_STAGE]
    found = [path for path in found if not gpu or "options.device" in path.read_text(encoding="utf-8")]
    return sorted(found, key=lambda path: (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem))


def run(path: Path, words: list[str]) -> Stage:
    """One stage; rows are shown as they come."""
    print(f"== {path.stem}", flush=True)
    begun, rows = time.monotonic(), list[dict[str, Any]]()
    child = subprocess.Popen([sys.executable, str(path), "--json", *words], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, cwd=ROOT)
    told: list[str] = []
    assert child.stdout is not None
    assert child.stderr is not None
    listener = threading.Thread(target=lambda: told.extend(child.stderr or ()))
    listener.start()
    end = threading.Timer(LONGEST, child.kill)
    end.start()
    for said in child.stdout:
        try:
            row = json.loads(said)
            print(line(row), flush=True)
            rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            print(said, end="", flush=True)  # a remark
    status = child.wait()
    end.cancel()
    listener.join()
    seconds = time.monotonic() - begun
    why = ""
    if status or not rows:
        last = next((text.strip() for text in reversed(told) if text.strip()), "nothing was measured")
        why = f"stopped after {seconds:.0f} s" if seconds >= LONGEST else f"exit status {status}: {last[:300]}"
        print(f"{path.stem} failed: {why}", flush=True)
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
    command = " ".join(["python", str(path.relative_to(ROOT)), *words])
    return Stage(path.stem, prose(about), command, rows, why, seconds, head())


def head() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def prose(docstring: str) -> str:
    """A docstring without its commands."""
    parts = [part for part in docstring.split("\n\n") if not part.startswith("    ")]
    return "\n\n".join(parts).strip()


def machine(device: str) -> list[tuple[str, str]]:
    """What it was measured on."""
    facts = []
    cpus = Path("/proc/cpuinfo")
    names = [row.partition(":")[2].strip() for row in cpus.read_text().splitlines() if row.startswith("model name")] \
        if cpus.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    threads = os.environ.get("OMP_NUM_THREADS")
    facts.append(("processor", f"{names[0] if names else platform.processor()}, {cores} cores, {memory:.0f} GiB"
                  + (f", OMP_NUM_THREADS={threads}" if threads else "")))
    facts.append(("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"))
    facts.append(("packages", ", ".join(f"{name} {found}" for name in PACKAGES if (found := packaged(name)))))
    done = subprocess.run([sys.executable, str(HERE / "floor.py"), device], capture_output=True, text=True, cwd=ROOT)
    facts += [("measured", text) for text in done.stdout.splitlines()]
    return facts


def packaged(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def page(done: list[Stage], facts: list[tuple[str, str]], command: str, plot: str | None) -> str:
    """The whole page, in Markdown."""
    out = ["# Benchmarks", "", f"Written by `{command}`; do not edit.", "",
           "Sides run in turns in one process, or as processes of their own where that is what is measured. A time is "
           "the median of its turns. A ratio is the other side's time by vlmkit's, turn by turn: its median, lowest "
           "and highest; **above 1 vlmkit is ahead**. Outputs are compared before anything is timed. The floor is what "
           "the machine needs at the least for the bytes and FLOPs of the work, at the rates measured in the same run. "
           "Peak memory is what a call needs over what was there before.", "",
           "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts), "", "## Summary", ""]
    if plot:
        out += [f"![Ratios by stage]({plot})", ""]
    out += ["| stage | cells | ratio: middle | lowest | highest | behind | took | commit |", "|---" * 8 + "|"]
    for stage in done:
        found = ratios(stage)
        cells = [f"{statistics.median(found):.2f}", f"{min(found):.2f}", f"{max(found):.2f}"] if found else ["", "", ""]
        behind = str(sum(r < 1 for r in found)) if found else ""
        note = " (failed)" if stage.failed else ""
        out.append(f"| [{stage.name}](#{stage.name}){note} | {len(stage.rows)} | {' | '.join(cells)} | {behind} | "
                   f"{stage.seconds:.0f} s | {stage.commit} |")
    for stage in done:
        out += ["", f"## {stage.name}", "", stage.about, "", f"`{stage.command}`", ""]
        if stage.failed:
            out += [f"**Failed**: {cell(stage.failed)}", ""]
        if stage.rows:
            out += table(stage.rows)
    return "\n".join(out) + "\n"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One stage: a line for each case, a column for each side."""
    sides = list(dict.fromkeys(name for row in rows for name in (*row["seconds"], *row.get("failed", ()))))
    heads = ["case", *sides, *(f"ratio to {name}" for name in sides[1:])]
    floors, peaks = any("floor" in row for row in rows), any("peak" in row for row in rows)
    heads += ["floor"] * floors + ["vlmkit / floor"] * floors + ["peak memory"] * peaks
    out = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [cell(row["case"])]
        for name in sides:
            given = row["seconds"].get(name)
            cells.append(short(given[0]) if given else cell(row.get("failed", {}).get(name, "")))
        for name in sides[1:]:
            r = row.get("ratio", {}).get(name)
            cells.append(f"**{r[0]:.2f}** ({r[1]:.2f} to {r[2]:.2f})" if r else "")
        if floors:
            ours = row["seconds"][sides[0]][0] if sides[0] in row["seconds"] else math.nan
            cells += [short(row["floor"]), f"{ours / row['floor']:.2f}"] if row.get("floor") else ["", ""]
        if peaks:
            cells.append(", ".join(f"{name} {size:.0f} MiB" for name, size in row.get("peak", {}).items()))
        out.append("| " + " | ".join(cells) + " |")
    return out


def ratios(stage: Stage) -> list[float]:
    """To others; another side of ours is shown in the table only."""
    return [r[0] for row in stage.rows for name, r in row.get("ratio", {}).items() if not name.startswith("vlmkit")]


def cell(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;").replace("\n", " ")


def short(seconds: float) -> str:
    """Three digits: 12.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
    raise AssertionError


def bars(done: list[Stage]) -> str:
    """A bar for each stage from 1 to its middle ratio, with a line from its lowest to its highest; logarithmic."""
    shown = [(stage.name, sorted(found)) for stage in done if (found := ratios(stage))]
    low = min([0.5, *(found[0] for _, found in shown)])
    high = max([4.0, *(found[-1] for _, found in shown)])
    left, width, step = 130, 560, 24

    def x(ratio: float) -> float:
        return left + width * math.log(ratio / low) / math.log(high / low)

    tall = step * len(shown) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {tall}" font-family="sans-serif" '
           'font-size="12">', f'<rect width="{left + width + 70}" height="{tall}" fill="#fff"/>']
    for mark in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
        if low <= mark <= high:
            colour = "#333" if mark == 1 else "#ddd"
            out.append(f'<path d="M{x(mark):.1f} 6V{tall - 24}" stroke="{colour}"/>'
                       f'<text x="{x(mark):.1f}" y="{tall - 8}" text-anchor="middle" fill="#555">{mark:g}x</text>')
    for at, (name, found) in enumerate(shown):
        y, middle = 10 + at * step, statistics.median(found)
        begin, end = sorted((x(1), x(middle)))
        colour = "#2a7f62" if middle >= 1 else "#b5482f"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>'
                   f'<rect x="{begin:.1f}" y="{y + 2}" width="{max(1, end - begin):.1f}" height="14" fill="{colour}"/>'
                   f'<path d="M{x(found[0]):.1f} {y + 9}H{x(found[-1]):.1f}" stroke="#222"/>'
                   f'<text x="{max(end, x(found[-1])) + 5:.1f}" y="{y + 13}">{middle:.2f}</text>')
    return "\n".join([*out, "</svg>\n"])


def main() -> int:
    ask = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ask.add_argument("--quick", action="store_true", help="small cases only, some minutes; written to build/")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--turns", type=int, help="how often each side runs")
    ask.add_argument("--only", nargs="*", metavar="STAGE", help="run these stages only")
    ask.add_argument("--out", type=Path, help="the page")
    given = ask.parse_args()
    gpu = given.device != "cpu"
    there = [path.stem for path in stages(gpu)]
    if unknown := set(given.only or ()) - set(there):
        ask.error(f"no stage is called {', '.join(sorted(unknown))}; there are: {', '.join(there)}")
    words = ["--quick"] * given.quick + (["--turns", str(given.turns)] if given.turns else [])
    words += ["--device", given.device] if gpu else []
    name = "benchmarks-gpu" if gpu else "benchmarks"
    where = given.out or ROOT / ("build" if given.quick else "docs") / f"{name}.md"
    facts = machine(given.device)
    for fact in facts:
        print(f"{fact[0]}: {fact[1]}")
    kept = ROOT / "build" / "benchmarks" / (name + "-quick" * given.quick)
    kept.mkdir(parents=True, exist_ok=True)
    done = []
    for path in stages(gpu):
        file = kept / f"{path.stem}.json"
        if given.only is None or path.stem in given.only:
            done.append(run(path, words))
            beside = file.with_suffix(".new")
            beside.write_text(json.dumps(done[-1]._asdict()), encoding="utf-8")
            beside.replace(file)
        elif file.exists():
            done.append(Stage(**json.loads(file.read_text(encoding="utf-8"))))
    images = where.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    plotted = any(map(ratios, done))
    if plotted:
        (images / f"{name}.svg").write_text(bars(done), encoding="utf-8")
    command = "make bench" + " GPU=1" * gpu + " QUICK=1" * given.quick
    plot = f"images/{name}.svg" if plotted else None
    where.write_text(page(done, facts, command, plot), encoding="utf-8")
    failed = [stage.name for stage in done if stage.failed]
    print(f"wrote {where}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
