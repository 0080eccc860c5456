"""Ask about a clip: which frames are read, and how many tokens each becomes."""

from pathlib import Path

import vlmkit
from vlmkit.model.rehearse import count
from vlmkit.types import Layout

clip = Path(__file__).parent / "media" / "move.mp4"
model, processor = vlmkit.load("tiny")

for question in ("What moves?", "Which way does the circle move?"):
    print(question, vlmkit.generate(model, processor, question, videos=[clip]))

# The sampler of the preset's `video` section chooses frames; the packer says how many tokens they become.
print("frames of a clip of 90:", model.video.sampler.pick(90, fps=30.0))
for frames in (8, 16, 32):
    print(frames, "frames:", count(processor.skeleton, Layout("video", 240, 320, frames=frames)), "tokens")
