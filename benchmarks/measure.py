"""Sides of a comparison, timed in turns in one process: what every script here stands on.

    bench = Bench("pictures", __doc__)
    bench.row("anyres 640x480", {"vlmkit": ours, "transformers": theirs}, same=equal)
    bench.end()

The first side is ours; a ratio is another side's time by ours, pair by pair, so above 1 means that vlmkit is ahead.
`same(ours, theirs)` raises where they differ. Such a row is not timed, and the stage ends with a failure that names it;
a third side that differs, such as theirs compiled, is only left out, and told.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Side = Callable[[], Any]
REST = 0.002  # seconds; a shorter call is repeated within a turn until it takes so long


class Bench:
    """The rows of one stage. Reads --turns, --json and --quick, and what `options` adds, from the command line."""

    def __init__(self, stage: str, about: str | None, options: Callable[[argparse.ArgumentParser], Any] | None = None):
        ask = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
        ask.add_argument("--turns", type=int, default=7, help="how often each side runs; odd, for a median")
        ask.add_argument("--quick", action="store_true", help="small cases only, three turns")
        ask.add_argument("--device", default="cpu", help="cpu or cuda; scripts that know no other take no notice")
        ask.add_argument("--json", action="store_true", help="a line of JSON for each row")
        if options:
            options(ask)
        self.stage, self.options = stage, ask.parse_args()
        self.turns = 3 if self.options.quick else self.options.turns
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        begin(self.options.device)

    def row(self, case: str, sides: Mapping[str, Side], *, same: Callable[[Any, Any], None] | None = None,
            floor: float | None = None, memory: bool = False, each: int = 1, turns: int | None = None
            ) -> dict[str, Any]:
        """Time the sides in turns, and tell.

        floor    seconds that the machine needs at the least, measured in the same run
        memory   also the peak of memory over what there was before, of one more call each
        each     what one call does so many times, such as tokens: times are told for one of them
        turns    at most so many, for a case that takes long

        Another side that cannot run here (a compiler that is not there) is left out, and told.
        """
        turns = min(self.turns, turns or self.turns)
        sides, failed, names = dict(sides), {}, list(sides)
        ours = sides[names[0]]()  # also the warm-up
        for name in names[1:]:
            try:
                found = sides[name]()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
                del sides[name]
                continue
            try:
                if same is not None:
                    same(ours, found)
            except AssertionError as error:
                why = str(error).strip().replace("\n", " ")[:200]
                if name == names[1]:
                    self.wrong.append(f"{case}: {why}")
                    print(f"{case}: not the same: {why}", file=sys.stderr, flush=True)
                    return {}
                failed[name] = f"differs: {why}"
                del sides[name]
        found = ours = None
        names = list(sides)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        times = {name: max(1, round(REST / max(self.timed(side, 1), 1e-9))) for name, side in sides.items()}
        for turn in range(turns):
            for name in names if turn % 2 == 0 else reversed(names):  # neither side always runs behind the other
                seconds[name].append(self.timed(sides[name], times[name]) / each)
        told: dict[str, Any] = {"stage": self.stage, "case": case, "turns": turns,
                                "seconds": {name: spread(column) for name, column in seconds.items()},
                                "ratio": {name: spread([a / b for a, b in zip(seconds[name], seconds[names[0]],
                                                                             strict=True)]) for name in names[1:]}}
        if floor is not None:
            told["floor"] = floor
        if memory:
            told["peak"] = {name: peak(side, self.options.device) for name, side in sides.items()}
        if failed:
            told["failed"] = failed
        return self.add(told)

    def add(self, told: dict[str, Any]) -> dict[str, Any]:
        """A row that was measured elsewhere, such as in processes of its own."""
        self.rows.append(told)
        print(json.dumps(told) if self.options.json else line(told), flush=True)
        return told

    def timed(self, side: Side, times: int) -> float:
        return timed(side, times, self.options.device)

    def end(self) -> None:
        if self.wrong:
            raise SystemExit(f"{self.stage}: not the same: " + "; ".join(self.wrong))
        if not self.rows:
            raise SystemExit(f"{self.stage}: nothing was measured")


def timed(side: Side, times: int, device: str = "cpu") -> float:
    """Seconds of one call, over so many in a row; the garbage collector waits, and a GPU is waited for."""
    gc.collect()
    gc.disable()
    try:
        wait(device)
        begun = time.perf_counter()
        for _ in range(times):
            side()
        wait(device)
        return (time.perf_counter() - begun) / times
    finally:
        gc.enable()


def begin(device: str) -> None:
    """A GPU that is not there is told before anything is built."""
    if device != "cpu":
        import torch

        torch.empty(0, device=device)


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def spread(column: list[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(column), min(column), max(column)]


def peak(side: Side, device: str = "cpu") -> float:
    """MiB that a call needs at most over what there was before: resident memory, or a GPU's."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side()
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left free would be used, and not counted
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start = resident("VmRSS")
    side()
    return resident("VmHWM") - start


def resident(key: str) -> float:
    """VmRSS, or VmHWM, its highest value so far, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in status.splitlines() if row.startswith(key)) / 1024


def line(told: dict[str, Any]) -> str:
    """A row for people: milliseconds, ratios with their spread, distance to the floor, peak memory."""
    parts = [f"{told['case']:<34}"]
    parts += [f"{name} {1000 * s[0]:.3g} ms" for name, s in told["seconds"].items()]
    parts += [f"{name} x{r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})" for name, r in told["ratio"].items()]
    if "floor" in told:
        ours = next(iter(told["seconds"].values()))[0]
        parts.append(f"floor {1000 * told['floor']:.3g} ms, x{ours / told['floor']:.2f}")
    parts += [f"{name} {size:.0f} MiB" for name, size in told.get("peak", {}).items()]
    parts += [f"{name}: {why}" for name, why in told.get("failed", {}).items()]
    return "   ".join(parts)
