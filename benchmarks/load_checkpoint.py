"""How long a folder of weights takes to load, and how much memory, beside transformers' from_pretrained.

    python benchmarks/load_checkpoint.py [--gib 2] [--turns 7]

A LLaVA-1.5 of random bfloat16 weights, written by transformers in shards of half a gibibyte. Each load is a process of
its own, in turns, and each process has loaded a very small model before, so that imports count for nobody; files are
in the page cache for all. vlmkit gives a model and its processor, so transformers does, too; "model only" leaves its
processor out. "ready" is when the call returns; "touched" is when every weight has been read once, as a first forward
would, for all may leave pages on disk until then. Memory is the highest resident size of the process, less what it was
before the load. The language model's weights are compared first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Bench, spread

THEIRS = "from transformers import LlavaForConditionalGeneration as L, LlavaProcessor as P\n"
LOADS = {
    "vlmkit": "from vlmkit.checkpoint.load import load",
    "transformers": THEIRS + "load = lambda f: (L.from_pretrained(f, dtype=torch.bfloat16), P.from_pretrained(f))",
    "transformers, model only": THEIRS + "load = lambda f: (L.from_pretrained(f, dtype=torch.bfloat16), None)",
}
WORDS = {name: "decoder" if name == "vlmkit" else "language_model" for name in LOADS}  # of the tower, vlmkit reads less
CHILD = """
import json, math, sys, time, torch
from measure import resident
{load}
load(sys.argv[2])
before, begun = resident('VmRSS'), time.perf_counter()
model, _ = load(sys.argv[1])
told = {{'ready': (time.perf_counter() - begun, resident('VmHWM') - before)}}
sums = {{name: p.detach().sum().item() for name, p in model.named_parameters()}}
told['touched'] = (time.perf_counter() - begun, resident('VmHWM') - before)
print(json.dumps([math.fsum(x for name, x in sums.items() if '{words}' in name or 'head' in name), told]))
"""


def write(folder: Path, layers: int, width: int) -> float:
    """A random LLaVA-1.5 with its processor; how many MiB its weights are."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    config = LlavaConfig(
        text_config=LlamaConfig(hidden_size=width, intermediate_size=width * 43 // 16, num_hidden_layers=layers,
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
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    LlavaProcessor(pixels, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), patch_size=14,
                   vision_feature_select_strategy="default").save_pretrained(folder)
    return sum(p.numel() for p in model.parameters()) * 2 / 2**20


def load(name: str, folder: Path, small: Path) -> tuple[float, dict[str, list[float]]]:
    """The sum of the language model's weights; for `ready` and `touched`: seconds, MiB."""
    child = CHILD.format(load=LOADS[name], words=WORDS[name])
    done = subprocess.run([sys.executable, "-c", child, str(folder), str(small)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})  # measure, too
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    total, told = json.loads(done.stdout.strip().splitlines()[-1])
    return total, told


def options(ask: argparse.ArgumentParser) -> None:
    ask.add_argument("--gib", type=float, default=2, help="size of the weights")


def main() -> None:
    bench = Bench("load", __doc__, options)
    with tempfile.TemporaryDirectory() as name:
        folder, small = Path(name) / "large", Path(name) / "small"
        layers = max(1, round(((0.25 if bench.options.quick else bench.options.gib) * 2**30 / 2 - 40e6) / 51e6))
        size = write(folder, layers, 2048)  # about 51 million numbers in a block
        write(small, 1, 64)
        sums = {who: load(who, folder, small)[0] for who in LOADS}  # from disk into the page cache
        if len(set(sums.values())) > 1:
            raise SystemExit(f"the weights differ: {sums}")
        found: dict[str, list[dict[str, list[float]]]] = {who: [] for who in LOADS}
        for turn in range(bench.turns):
            for who in LOADS if turn % 2 == 0 else reversed(LOADS):
                found[who].append(load(who, folder, small)[1])
        for stage in ("ready", "touched"):
            seconds = {who: [run[stage][0] for run in runs] for who, runs in found.items()}
            ours, *others = seconds
            ratios = {who: spread([a / b for a, b in zip(seconds[who], seconds[ours], strict=True)]) for who in others}
            peaks = {who: spread([run[stage][1] for run in runs])[0] for who, runs in found.items()}
            bench.add({"stage": "load", "case": f"{size / 1024:.2f} GiB bfloat16, {stage}", "turns": bench.turns,
                       "seconds": {who: spread(column) for who, column in seconds.items()}, "ratio": ratios,
                       "peak": peaks})
    bench.end()


if __name__ == "__main__":
    main()
