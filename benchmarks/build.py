"""A model without a checkpoint: on paper (the meta device), and with random weights.

    python benchmarks/build.py

Both as they come. vlmkit's `check` also runs an imaginary picture and a clip through and counts their tokens, which
transformers has no word for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import Bench
from models import FAMILIES, SIZES, Shape, preset, their_build

import vlmkit
from vlmkit.model.assemble import assemble

DEEP = {"clip": (1024, 24, 16), "siglip": (1152, 26, 16)}


def full(family: str) -> Shape:
    """The published 7B."""
    return SIZES["7b"]._replace(tower=DEEP["siglip" if family == "onevision" else "clip"])


def same_size(ours: Any, theirs: Any) -> None:
    """Ours lacks what nobody reads: the last block of CLIP, final norms. Of the decoder nothing."""
    own, their = (sum(p.numel() for p in part.parameters()) for part in (
        ours.decoder, torch.nn.ModuleList([theirs.model.language_model, theirs.lm_head])))
    assert own == their, f"decoders of {own} and {their} parameters"


def main() -> None:
    bench = Bench("build", __doc__)
    for family in FAMILIES:
        plan, shape = preset(family, full(family)), full(family)
        bench.row(f"{family} 7B on paper", {
            "vlmkit": partial(assemble, plan),
            "transformers": partial(their_build, family, shape, device="meta", drawn=True)}, same=same_size)
        bench.row(f"{family} 7B, vlmkit check", {"vlmkit": partial(vlmkit.check, plan)})
    size = "tiny" if bench.options.quick else "small"
    plan, shape = preset("llava", SIZES[size]), SIZES[size]
    bench.row(f"llava {size}, random weights", {
        "vlmkit": lambda: vlmkit.build(plan), "transformers": lambda: their_build("llava", shape, drawn=True)},
        same=same_size, memory=True, turns=3)  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
