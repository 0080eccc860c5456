"""See what a model sees: tiles, tokens, and what passes inside while it runs."""

from pathlib import Path

import torch
from PIL import Image

import vlmkit
from vlmkit.model.assemble import assemble
from vlmkit.types import Visual
from vlmkit.view import tiles, tokens
from vlmkit.view.trace import trace
from vlmkit.view.watch import watch

media = Path(__file__).parent / "media"
preset = vlmkit.compose("tiny")
skeleton = assemble(preset)  # shapes without weights

picture = Image.open(media / "small.png").convert("RGB")
tiler = skeleton.image.tiler
layout = tiler.plan(picture.height, picture.width, True)
pixels = tiler.cut(picture, layout)
origin = trace(skeleton, layout)
print(layout, "->", len(origin.tokens), "tokens, the last one a", origin.tokens[-1].kind)

tiles.draw(pixels, layout, origin).save("tiles.png")
tokens.draw(pixels, layout, origin).save("tokens.png")

# Named points can be watched while a model runs; nothing in its code is there for that.
model = vlmkit.build(preset)
with torch.no_grad(), watch(model, "image.features") as seen:
    model.encode([Visual(pixels, layout)])
print("image.features:", list(seen["image.features"][0].shape))
