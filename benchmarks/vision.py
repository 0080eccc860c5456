"""Tiles to the tokens that the decoder reads: tower, projector, packer, in time and in memory.

    python benchmarks/vision.py [--device cuda] [--turns 3]

A CLIP-L/14 at 336 pixels and a SigLIP-SO400M/14 at 384, at full width and two blocks deep, with random weights, the
same on both sides. Each side starts from what its processor gives: ours from uint8 tiles, transformers from normalised
floats in the model's type. The models read CLIP before its last block, which transformers runs all the same; here,
where that would be half of its work and not a 24th, that block does nothing. "again" is a second question about
the same picture or clip, with a FeatureCache.
"""

from functools import partial

import torch
from measure import Bench
from models import Shape, pair
from transformers import CLIPVisionConfig

from vlmkit.model.features import FeatureCache

CLIP = Shape((1024, 3, 16), (336, 384), 896, 1, 14, 2, 256, 384)
SIGLIP = Shape((1152, 2, 16), (336, 384), 896, 1, 14, 2, 256, 384)
CASES = [  # family, shape, pictures, their size, frames of a clip, types
    ("llava", CLIP, 1, (336, 336), 0, "float32 bfloat16"),
    ("next", CLIP, 1, (480, 640), 0, "float32 bfloat16"),
    ("onevision", SIGLIP, 1, (480, 640), 0, "float32 bfloat16"),
    ("next-video", CLIP, 0, (336, 336), 8, "float32 bfloat16"),
    ("llava", CLIP, 7, (336, 336), 0, "float32 bfloat16"),
    ("llava", CLIP, 37, (336, 336), 0, "float32 bfloat16"),
    ("onevision", SIGLIP, 1, (2304, 2304), 0, "float32"),
    ("onevision", SIGLIP, 0, (384, 384), 8, "float32"),
    ("onevision", SIGLIP, 0, (384, 384), 32, "float32"),
]
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.25}  # of tokens that spread by about one


def theirs(two, read):
    """Their tokens, in reading order.   list of [tokens, width]"""
    with torch.inference_mode():
        if "pixel_values" in read:
            given = {name: read[name] for name in ("pixel_values", "image_sizes", "batch_num_images") if name in read}
            found = two.theirs.get_image_features(**given)
        else:
            found = two.theirs.get_video_features(read["pixel_values_videos"])
    return [each.flatten(0, -2) for each in getattr(found, "pooler_output", found)]


def cut(two):
    """Nothing is done in the last block of their CLIP, which nobody reads."""
    if isinstance(two.theirs.config.vision_config, CLIPVisionConfig):
        blocks = next(p for p in two.theirs.model.vision_tower.modules() if isinstance(p, torch.nn.ModuleList))
        blocks[-1].forward = lambda x, *_, **__: x
    return two


def ours(two, visuals, cache=None):
    with torch.inference_mode():
        return two.model.encode(visuals, cache)


def same(tolerance, ours, theirs):
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=tolerance * float(theirs.float().std()))


def main():
    bench = Bench("vision", __doc__)
    device, turns = bench.options.device, bench.turns
    for family, shape, pictures, size, frames, kinds in CASES[:2] if bench.options.quick else CASES:
        for kind in (getattr(torch, name) for name in kinds.split()):
            two = cut(pair(family, shape, kind, device))
            talks = [two.ask(size, seed=at) for at in range(pictures)] or [two.ask_clip(frames)]
            visuals, read = two.processor([talk.messages for talk in talks]).to(device).visuals, two.read(talks)
            tiles = sum(v.layout.tiles for v in visuals)
            name = f"{family}, {tiles} {'frames' if frames else 'tiles'}, {str(kind)[6:]}"
            sides = {"vlmkit": partial(ours, two, visuals), "transformers": partial(theirs, two, read)}
            bench.turns = min(turns, 3) if tiles > 8 else turns
            bench.row(name, sides, same=partial(same, TOLERANCE[kind]), memory=device == "cpu")
            if tiles in (5, 8):
                again = sides | {"vlmkit": partial(ours, two, visuals, FeatureCache())}
                bench.row(f"{name}, again", again, same=partial(same, TOLERANCE[kind]))
    bench.end()


if __name__ == "__main__":
    main()
