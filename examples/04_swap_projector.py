"""Change one part of a 7B model and see what that changes. No weights, no memory, about a second."""

import vlmkit

before = vlmkit.check(vlmkit.compose("llava-1.5-7b"))
after = vlmkit.check(vlmkit.compose("llava-1.5-7b", "projector={use: resampler, queries: 64, depth: 2}"))

for report in (before, after):
    print(f"projector {report.parameters['projector']:>12,} parameters, a picture is {report.tokens(480, 640)} tokens")

# What does not fit is told before anything is built: queries have no rows and columns to end with a newline.
try:
    vlmkit.check(vlmkit.compose("llava-onevision-qwen2-7b", "projector=resampler"))
except vlmkit.ShapeError as error:
    print(error)

# A mistake in a word is told with its place and the nearest right one.
try:
    vlmkit.compose("llava-1.5-7b", "projector.depht=3", "image.packer=flatt")
except vlmkit.PresetError as error:
    print(error)
