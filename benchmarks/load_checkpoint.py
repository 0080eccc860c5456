"""How long a folder of weights takes to load, and how much memory, beside transformers' from_pretrained.

    python benchmarks/load_checkpoint.py [--gib 2] [--turns 5]

A LLaVA-1.5 of random bfloat16 weights, written by transformers in shards of half a gibibyte. Each load is a process of
its own, in turns: theirs, ours, theirs, ours. Imports are not counted, and files are in the page cache for both.
"loaded" is when the call returns; "used" is when every weight has been read once, as a first forward would, for both
sides may leave pages on disk until then. Memory is the highest resident size of the process so far, less what it was
before the load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LOADS = {
    "transformers": "from transformers import LlavaForConditionalGeneration as L\n"
                    "load = lambda: L.from_pretrained(FOLDER, dtype=torch.bfloat16)",
    "vlmkit": "from vlmkit.checkpoint.load import load as L\nload = lambda: L(FOLDER)[0]",
}
CHILD = """
import json, sys, time, torch, vlmkit.parts.towers.timm
FOLDER = sys.argv[1]
{load}
def resident(key):
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(key)) / 2**20
def now():
    return time.perf_counter() - begun, resident('VmHWM') - before
before, begun = resident('VmRSS'), time.perf_counter()
model = load()
loaded = now()
for p in model.parameters():
    p.detach().sum()
print(json.dumps(dict(zip(('loaded, s', 'loaded, GiB', 'used, s', 'used, GiB'), (*loaded, *now())))))
"""


def write(folder: Path, gib: float) -> float:
    """A random LLaVA-1.5 of about so many GiB; the size it got."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    layers = max(1, round((gib * 2**30 / 2 - 40e6) / 51e6))  # about 51 million numbers in a block
    config = LlavaConfig(
        text_config=LlamaConfig(hidden_size=2048, intermediate_size=5504, num_hidden_layers=layers,
                                num_attention_heads=16, vocab_size=8064),
        vision_config=CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                                       num_attention_heads=4, image_size=56, patch_size=14),
        image_token_index=1)  # fmt: skip
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.05, 0.05)
    model.save_pretrained(folder, max_shard_size="500MB")
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.add_special_tokens(["<image>"])
    words.save(str(folder / "tokenizer.json"))
    return sum(p.numel() for p in model.parameters()) * 2 / 2**30


def load(name: str, folder: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", CHILD.format(load=LOADS[name]), str(folder)],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--gib", type=float, default=2)
    ask.add_argument("--turns", type=int, default=5)
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as name:
        size = write(Path(name), given.gib)
        print(f"{size:.2f} GiB of weights, {given.turns} loads each")
        found: dict[str, list[dict[str, float]]] = {"transformers": [], "vlmkit": []}
        for _ in range(given.turns):
            for who, runs in found.items():
                runs.append(load(who, Path(name)))
        print(f"{'median (lowest to highest)':<28}" + "".join(f"{who:>26}" for who in found) + f"{'ratio':>22}")
        for key in found["vlmkit"][0]:
            theirs, ours = ([run[key] for run in runs] for runs in found.values())
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            columns = "".join(f"{middle(column):>26}" for column in (theirs, ours))
            print(f"{key:<28}{columns}{middle(ratios):>22}")


def middle(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


if __name__ == "__main__":
    main()
