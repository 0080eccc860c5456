"""Plugins from wheels: vlmkit and every package of plugins/ are built, installed into a fresh environment, and checked
there; four parts from outside the tree are trained, saved, loaded, asked, and exported where they have a home.

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
    vlmkit.export(model, processor, sys.argv[2] + "-llava")
except vlmkit.PresetError as error:
    homeless = str(error)
print(json.dumps({"text": answer.text, "visual": answer.visual_tokens, "homeless": homeless}))
"""
WRAP = """
import sys, torch, vlmkit, vlmkit_transformers
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = vlmkit_transformers.wrap(*vlmkit.load(sys.argv[1]))
model.save_pretrained(sys.argv[2])
processor.save_pretrained(sys.argv[2])
asked = [[{"role": "user", "content": [{"type": "image", "image": sys.argv[3]}, {"type": "text", "text": "What?"}]}]]
inputs = processor.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)
again = AutoModelForImageTextToText.from_pretrained(sys.argv[2])
same = AutoProcessor.from_pretrained(sys.argv[2]).apply_chat_template(asked, tokenize=True, add_generation_prompt=True)
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, again(**same).logits), "transformers loads another model than was saved"
"""
LLAVA = ["tower={use: timm, model: vit_large_patch14_clip_quickgelu_336.openai, layer: -2, "
         "options: {img_size: 56, embed_dim: 32, depth: 2, num_heads: 2}}", "projector={use: mlp, depth: 2}",
         "decoder={use: transformer, family: llama, width: 64, layers: 2, heads: 4, ffn: 96, vocab: 464, context: 512}",
         "image={tiler: {use: square, fit: pad}, packer: flat}", "video=null", "train.separators=null",
         "data.skills=[shape]"]  # of what `outside` says only its chat style is left
LMMS = "vlmkit-lmms-eval"


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

    def run(self, *words: object, broken: int = 0, home: Path | None = None) -> str:
        done = subprocess.run([str(self.python), *map(str, words)], cwd=home or self.folder, env=self.clean,
                              timeout=3600, capture_output=True, text=True, check=False)
        if done.returncode not in (0, broken):
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
    tests = place.folder / "tests" / package.name
    shutil.copytree(package / "tests", tests / "tests")
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(package / name, tests)
    pytest = "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"
    own = last(place.run(*pytest, "tests", home=tests))
    if package.name == LMMS:
        assert "skipped" not in own, own
        return f"{LMMS}: it has no parts, lmms-eval finds it; its own tests: {own}"
    told = json.loads(place.run("-m", "vlmkit", "plugins", "check", package.name, "--json", broken=7))
    failed = [f"{o['of']}: {o['check']}: {o['said']}" for o in told if o["state"] == "failed"]
    if failed:
        sys.exit(f"{package.name}\n" + "\n".join(failed))
    flag = place.run(*pytest, "--vlmkit-conformance", package.name, home=tests)
    count = sum(o["state"] == "passed" for o in told)
    return (f"{package.name}: {count} checks of {len({o['of'] for o in told})} parts and presets; by pytest: "
            f"{last(flag)}; its own tests: {own} ({time.perf_counter() - begun:.0f} s)")


def last(text: str) -> str:
    return text.strip().splitlines()[-1].strip("= ")


def outside(place: Place) -> str:
    """Four parts from outside the tree, each one small file: checked, trained 50 steps, saved, loaded, asked, exported.

    In llava-hf only their chat style has a home, and the refusal names what has none; transformers takes them whole.
    """
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
    assert "pooled has no home in llava-hf" in told["homeless"], told["homeless"]
    place.run("-c", WRAP, out / "model", place.folder / "wrapped", ROOT / "examples" / "media" / "shapes.png")
    place.run("-m", "vlmkit", "train", "outside", "runs/tiny", *LLAVA, "steps=2", "batch=2", "workers=0", "--out",
              place.folder / "llava")
    place.run("-m", "vlmkit", "export", place.folder / "llava" / "model", "--check", "--out", place.folder / "hf")
    spoken = (place.folder / "hf" / "chat_template.jinja").read_text("utf-8")
    assert "{{ m.role }}: " in spoken, spoken
    return (f"outside: {learned}; saved, loaded, equal; llava-hf: {' '.join(told['homeless'].split())}; its chat style "
            "alone: exported, answers the same there; all of it: saved and loaded by transformers, equal")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("packages", nargs="*")
    ask.add_argument("--borrow", type=Path)
    ask.add_argument("--wheel")
    given = ask.parse_args()
    packages = [folder for folder in sorted((ROOT / "plugins").iterdir()) if (folder / "pyproject.toml").exists()]
    names = given.packages or ["outside", *(folder.name for folder in packages)]
    home = ["vlmkit-transformers"] * ("outside" in names)
    chosen = [folder for folder in packages if folder.name in names + home]
    with tempfile.TemporaryDirectory() as name:
        built = wheels([ROOT, OUTSIDE, *chosen], Path(name, "wheels"), given.wheel)
        place = Place(Path(name), given.borrow)
        pip = "-m", "pip", "install", "-q", "--disable-pip-version-check"
        place.run(*pip, "--no-deps", "--force-reinstall", *built)
        place.run(*pip, "pytest>=9", "accelerate", "peft", "transformers", *built)  # what they and their tests need
        if LMMS in names:
            place.run(*pip, "--no-deps", "lmms-eval>=0.7")  # its README says why alone
        print(place.run("-m", "vlmkit", "plugins"), flush=True)
        if "outside" in names:
            print(outside(place), flush=True)
        for folder in (folder for folder in chosen if folder.name in names):
            print(check(place, folder), flush=True)


if __name__ == "__main__":
    main()
