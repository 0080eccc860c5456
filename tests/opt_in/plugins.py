"""Plugins from wheels: vlmkit and every package of plugins/ are built, installed into a fresh environment, and checked
there; four parts from outside the tree are trained, saved, loaded and asked.

    python tests/opt_in/plugins.py [PACKAGE]...

--borrow DIR  take everything that is not vlmkit's from the site-packages of another environment, instead of a download
--wheel PY    the Python that builds wheels without a network; it has hatchling
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = ROOT / "tests" / "plugins" / "outside"
LINES = {"patches": 25, "gated": 20, "pooled": 40, "parallel": 30, "presets/outside.yaml": 25}  # at most, no blank ones
ASK = """
import json, sys, torch, vlmkit
from PIL import Image
model, processor = vlmkit.load(sys.argv[1])
asked = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64), "red")},
                                      {"type": "text", "text": "What colour is it?"}]}]
batch = processor([asked])
with torch.no_grad():
    first = model(batch)
    vlmkit.save(model, processor, sys.argv[2])
    again, _ = vlmkit.load(sys.argv[2])
    assert torch.equal(first, again(batch)), "what was saved is not what was loaded"
assert vlmkit.__file__.startswith(sys.prefix), vlmkit.__file__
(answer,) = vlmkit.generate(model, processor, [asked], max_new_tokens=8, details=True)
try:
    vlmkit.export(model, processor, sys.argv[2] + "-llava", format="llava-hf")
    home = "exported"
except vlmkit.PresetError as error:
    home = str(error)
print(json.dumps({"text": answer.text, "visual": answer.visual_tokens, "home": home}))
"""


class Place:
    """A fresh environment and a folder to work in."""

    def __init__(self, folder: Path, borrow: Path | None) -> None:
        self.folder, self.env = folder, folder / "env"
        venv.create(self.env, with_pip=True, symlinks=True)
        self.python = self.env / "bin" / "python"
        if borrow:
            site = next((self.env / "lib").glob("python3*/site-packages"))
            (site / "borrowed.pth").write_text(f"{borrow.absolute()}\n")
        self.clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLMKIT_"))}
        self.clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

    def run(self, *words: object, ok: bool = True, home: Path | None = None) -> str:
        done = subprocess.run([str(self.python), *map(str, words)], cwd=home or self.folder, env=self.clean,
                              timeout=3600, capture_output=True, text=True, check=False)
        if ok and done.returncode:
            sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout


def wheels(folders: list[Path], to: Path, builder: str | None) -> list[Path]:
    """One for each folder, built from a copy: nothing of the tree is changed."""
    for folder in folders:
        source = to / "source" / folder.name
        shutil.copytree(folder, source, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__"))
        how = ["--no-build-isolation"] if builder else []
        words = [builder or sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *how, "-w", str(to), str(source)]
        subprocess.run(words, check=True, timeout=900)
    return sorted(to.glob("*.whl"))


def check(place: Place, package: Path) -> str:
    """Conformance by the command line and by pytest, then its own tests, away from its sources."""
    begun = time.perf_counter()
    told = json.loads(place.run("-m", "vlmkit", "plugins", "check", package.name, "--json", ok=False))
    failed = [f"{o['of']}: {o['check']}: {o['said']}" for o in told if o["state"] == "failed"]
    if failed:
        sys.exit(f"{package.name}\n" + "\n".join(failed))
    tests = place.folder / "tests" / package.name
    shutil.copytree(package / "tests", tests / "tests")
    pytest = "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"
    own = place.run(*pytest, "tests", home=tests)
    flag = place.run(*pytest, "--vlmkit-conformance", package.name, home=tests)
    count = sum(o["state"] == "passed" for o in told)
    return (f"{package.name}: {count} checks of {len({o['of'] for o in told})} parts and presets; by pytest: "
            f"{last(flag)}; its own tests: {last(own)} ({time.perf_counter() - begun:.0f} s)")


def last(text: str) -> str:
    return text.strip().splitlines()[-1].strip("= ")


def outside(place: Place) -> str:
    """Four parts from outside the tree, each one small file: checked, trained 50 steps, saved, loaded, asked."""
    for name, most in LINES.items():
        file = OUTSIDE / "vlmkit_outside" / (name if "." in name else f"{name}.py")
        lines = sum(bool(line.strip()) for line in file.read_text("utf-8").splitlines())
        assert lines <= most, f"{file.name}: {lines} lines"
    place.run("-m", "vlmkit", "plugins", "check", "vlmkit-outside")
    out = place.folder / "trained"
    words = "steps=50", "batch=4", "data.turns=3", "workers=0"
    place.run("-m", "vlmkit", "train", "outside", "runs/tiny", *words, "--out", out)
    told = json.loads(place.run("-c", ASK, out / "model", place.folder / "again"))
    losses = [json.loads(line).get("loss") for line in (out / "log.jsonl").read_text().splitlines()]
    found = [loss for loss in losses if isinstance(loss, float)]
    first, final = sum(found[:5]) / 5, sum(found[-5:]) / 5
    assert final < first, f"loss {first:.2f} to {final:.2f}"
    learned = f"loss {first:.2f} to {final:.2f} in {len(found)} steps"
    return f"outside: {learned}; saved, loaded, equal; llava-hf: {told['home']}"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("packages", nargs="*")
    ask.add_argument("--borrow", type=Path)
    ask.add_argument("--wheel")
    given = ask.parse_args()
    packages = [folder for folder in sorted((ROOT / "plugins").iterdir()) if (folder / "pyproject.toml").exists()]
    chosen = [folder for folder in packages if not given.packages or folder.name in given.packages]
    with tempfile.TemporaryDirectory() as name:
        built = wheels([ROOT, OUTSIDE, *chosen], Path(name, "wheels"), given.wheel)
        place = Place(Path(name), given.borrow)
        more = ["--no-deps"] if given.borrow else ["pytest>=9"]
        place.run("-m", "pip", "install", "-q", "--disable-pip-version-check", *more, *built)
        print(place.run("-m", "vlmkit", "plugins"), flush=True)
        for folder in chosen:
            print(check(place, folder), flush=True)
        if not given.packages or "outside" in given.packages:
            print(outside(place), flush=True)


if __name__ == "__main__":
    main()
