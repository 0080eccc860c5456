"""A real vLLM serves our exports with our greedy tokens: `make vllm`. Not part of the test suite.

    python tests/opt_in/vllm_same.py PYTHON_WITH_VLLM [NAME]...

Makes a small random model of every class that vLLM knows, exports it, answers questions here, and has vLLM answer the
same in a process of its own, on the CPU, in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import small

import vlmkit
from vlmkit.checkpoint.export import write
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

HERE = Path(__file__).parent
SAID = 24
# vLLM's attention on a CPU wants heads of 32 or more. Pictures are as large as a tile, so that nothing is resized: vLLM
# resizes by torchvision, which rounds otherwise than Pillow.
WIDE = ("decoder.width=128", "decoder.heads=4", "decoder.kv_heads=2", "decoder.head=32", "decoder.ffn=192",
        "tower.options.embed_dim=64", "tower.options.num_heads=2")  # fmt: skip
CASES = {  # name in tests/parity -> (what changes, what is shown: so many pictures, or a clip of so many frames)
    "llava": ((), (1, 2)),
    "bakllava": ((), (1,)),
    "interleave": ((), (1, 2)),
    "next": ((), (1, 2)),
    "next-mistral": ((), (1,)),
    "next-video": (("video.sampler.frames=4", "tower.options.img_size=224"), ("clip",)),  # vLLM's takes no others
    "onevision": (("video.sampler.frames=4",), (1, "clip")),  # vLLM cuts each of several pictures, we do not
    "onevision-tied": (("tower.whole=true",), (1,)),
}


def main(python: str, names: list[str]) -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for name in names or CASES:
            case = make(name, Path(place) / name)
            said = subprocess.run([python, str(HERE / "vllm_answers.py"), str(case)], capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": str(HERE / "vllm_site")})
            answers = case.with_suffix(".answers.json")
            if not answers.is_file():
                print(f"{name:<16} vLLM failed\n{(said.stdout + said.stderr)[-3000:]}")
                wrong += 1
                continue
            told = zip(json.loads(case.read_text())["questions"], json.loads(answers.read_text()), strict=True)
            wrong += sum(not line(name, question, answer) for question, answer in told)
    print("all the same" if not wrong else f"{wrong} differ")
    return int(bool(wrong))


def line(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Print how far two answers agree."""
    alike = next((at for at, (a, b) in enumerate(zip(ours["ids"], theirs["ids"], strict=False)) if a != b), SAID)
    read = f"{ours['tokens']} tokens" + (f", vLLM read {theirs['tokens']}" * (ours["tokens"] != theirs["tokens"]))
    print(f"{name:<16} {ours['what']:<12} {read}: {alike} of {SAID} greedy tokens the same", flush=True)
    return ours["ids"] == theirs["ids"] and ours["tokens"] == theirs["tokens"]


def make(name: str, folder: Path) -> Path:
    """A model's export, its questions, and what we answer, as a file beside it."""
    more, shown = CASES[name]
    preset = vlmkit.compose(small.preset(name), *WIDE, f"decoder.vocab={small.WORDS}", *more)
    model = vlmkit.build(preset).eval()
    small.scatter(model, 1)
    processor = Processor(preset, assemble(preset), Tokenizer(small.tokenizer(small.bos(name))))
    write(model, processor, folder, "llava-hf")
    questions = [ask(model, processor, folder.parent, what) for what in shown]
    case = folder.with_suffix(".json")
    case.write_text(json.dumps({"folder": str(folder), "said": SAID, "questions": questions}))
    return case


def ask(model: Any, processor: Processor, place: Path, what: Any) -> dict[str, Any]:
    """A question with its pictures as files, and our answer."""
    side, clip = model.tower.side, what == "clip"
    pictures = [small.picture(side, side, seed) for seed in range(4 if clip else what)]
    files = []
    for at, picture in enumerate(pictures):
        files.append(str(place / f"{side}-{at}.png"))
        picture.save(files[-1])
    parts = [{"type": "video", "video": pictures}] if clip else [{"type": "image", "image": p} for p in pictures]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in it?"}]}]
    said = vlmkit.generate(model, processor, messages, max_new_tokens=SAID, ignore_eos=True, details=True)
    return {"what": "clip" if clip else f"{what} picture{'s' * (what > 1)}", "clip": clip, "files": files,
            "text": "What is in it?", "tokens": said.prompt_tokens, "ids": said.ids}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
