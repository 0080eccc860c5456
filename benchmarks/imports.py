"""What a start costs: imports, commands, and the way from an empty process to the first token of a tiny model.

    python benchmarks/imports.py

Every call is a process of its own, with files in the page cache; the floor is a Python that does nothing. For the first
token both sides load the same folder, which transformers wrote, and answer the same question about a picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Bench, Side

LOADS = {
    "vlmkit": "import vlmkit; vlmkit.load, vlmkit.generate; import torch",
    "transformers": "from transformers import AutoModelForImageTextToText, AutoProcessor; import torch",
}
COMMANDS = (["--help"], ["parts"], ["presets"])
FIRST = {
    "vlmkit": """
import sys, vlmkit
model, processor = vlmkit.load(sys.argv[1])
asked = [{"role": "user", "content": [{"type": "image", "image": sys.argv[2]}, {"type": "text", "text": "What?"}]}]
said = vlmkit.generate(model, processor, asked, max_new_tokens=1, ignore_eos=True, details=True)
print(said.ids[0])
""",
    "transformers": """
import sys, torch, PIL.Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1], backend="pil")
batch = processor(text=sys.argv[3], images=PIL.Image.open(sys.argv[2]), return_tensors="pt")
with torch.inference_mode():
    print(int(model.generate(**batch, max_new_tokens=1, do_sample=False)[0, -1]))
""",
}


def process(*words: str) -> Side:
    """A Python with these words; gives what it says."""

    def run() -> str:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return done.stdout

    return run


def folder(place: Path) -> list[str]:
    """A tiny LLaVA in transformers' own layout, a picture, and the prompt: the words that FIRST takes."""
    from models import pair, picture, theirs

    two = pair("llava", "tiny")
    two.theirs.save_pretrained(place)
    two.reader.save_pretrained(place)
    picture(100, 140).save(place / "shown.png")
    return [str(place), str(place / "shown.png"), theirs.prompt("vicuna_v1", ("<image>\nWhat?",))]


def same(ours: str, theirs: str) -> None:
    assert ours == theirs, f"first tokens differ: {ours} and {theirs}"


def main() -> None:
    bench = Bench("imports", __doc__)
    empty = min(bench.timed(process("-c", "pass"), 1) for _ in range(5))
    bare = {name: process("-c", f"import {name}") for name in LOADS}
    bench.row("import", bare, floor=empty)
    bench.row("import of what loads and answers", {name: process("-c", code) for name, code in LOADS.items()},
              floor=empty)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        words = folder(Path(name))
        bench.row("first token of a tiny LLaVA", {who: process("-c", code, *words) for who, code in FIRST.items()},
                  same=same, floor=empty)  # fmt: skip
    for words in COMMANDS:
        bench.row(f"vlmkit {words[0]}", {"vlmkit": process("-m", "vlmkit", *words)}, floor=empty)
    bench.end()


if __name__ == "__main__":
    main()
