"""How long the light things take: seconds of wall clock, best of five, beside an empty Python.

    python benchmarks/imports.py
"""

from __future__ import annotations

import subprocess
import sys
import time

PROGRAMS = {
    "an empty python": ["-c", "pass"],
    "import vlmkit": ["-c", "import vlmkit"],
    "vlmkit --help": ["-m", "vlmkit", "--help"],
    "vlmkit parts": ["-m", "vlmkit", "parts"],
    "vlmkit presets": ["-m", "vlmkit", "presets"],
}


def seconds(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    for name, arguments in PROGRAMS.items():
        print(f"{name:<18} {min(seconds(arguments) for _ in range(5)):.3f} s")
