"""A picture, or a JPEG file, to what a tower reads: vlmkit beside both backends of transformers' image processors.

    python benchmarks/pictures.py [--quick] [--turns 7]

The same normalised floats on all sides. Beside transformers' backend for PIL, vlmkit resizes with Pillow, and every
value must be equal; beside its backend for torchvision with `resample: torch`, and every uint8 value must be equal, the
floats to 2e-6: that backend divides in another order. vlmkit's tower normalises, so a third side tells what the
tiles alone take. Files hold a picture of smooth colours with edges in it, at quality 90; a picture that is given to all
sides as one of PIL's is such a file, read by vlmkit.
"""

import tempfile
from pathlib import Path

import measure
import numpy
import torch
import transformers
from PIL import Image, ImageDraw
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from vlmkit.parts.tilers import anyres, square
from vlmkit.parts.towers.timm import normalise
from vlmkit.processing.media import look, open_picture
from vlmkit.processing.threads import Ahead

SIZES = [(480, 640), (1080, 1920), (3000, 4000), (4000, 3000)]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
TALL = tuple((rows, cols) for rows in range(1, 7) for cols in range(1, 7))


def pins(side, grids):
    return [[side * rows, side * cols] for rows, cols in grids]


CROP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
ONE = {"size": {"height": 384, "width": 384}, "image_mean": list(HALF[0]), "image_std": list(HALF[1]),
       "image_grid_pinpoints": pins(384, TALL)}
FAMILIES = {  # our tiler, its side and statistics, their processors for PIL and for torchvision
    "LLaVA-NeXT": (anyres, {"grids": GRIDS}, 336, CLIP, LlavaNextImageProcessorPil,
                   transformers.LlavaNextImageProcessor, {**CROP, "image_grid_pinpoints": pins(336, GRIDS)}),
    "OneVision": (anyres, {"largest": (6, 6)}, 384, HALF, LlavaOnevisionImageProcessorPil,
                  transformers.LlavaOnevisionImageProcessor, ONE),
    "square": (square, {"fit": "pad"}, 336, CLIP, LlavaImageProcessorPil, transformers.LlavaImageProcessor,
               {**CROP, "do_pad": True}),
}


def picture(height, width):
    draw = numpy.random.default_rng(height * 10_000 + width)
    small = draw.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=numpy.uint8)
    made = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(made)
    for _ in range(200):
        x, y = int(draw.integers(0, width)), int(draw.integers(0, height))
        pen.rectangle((x, y, x + width // 40, y + height // 60), fill=tuple(draw.integers(0, 256, 3).tolist()))
    return made


def alike(stats, room):
    """Floats equal to `room`, and the uint8 values that they were."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in stats)

    def same(ours, theirs):
        for a, b in zip(ours, theirs, strict=True):
            b = normalise(b, *stats) if b.dtype == torch.uint8 else b
            assert torch.equal(*(((x * std + mean) * 255).round() for x in (a, b)))
            assert (a - b).abs().max() <= room

    return same


def sides(family, sources):
    """For each backend its name, our tiles, our floats, their floats, and the check. A tensor for each picture."""
    part, config, side, stats, pil, torchvision, options = FAMILIES[family]
    for name, resample, made in (("PIL", "pillow", pil), ("torchvision", "torch", torchvision)):
        tiler, processor = part.Config(**config, resample=resample).build(side=side, fill=stats[0]), made(**options)

        def cut(source, tiler=tiler):
            seen = look(source)
            return tiler.cut(seen.decode(), tiler.plan(seen.height, seen.width, True))

        def tiles(cut=cut):
            with Ahead() as ahead:
                return [wait() for wait in [ahead(cut, source) for source in sources]]

        def ours(tiles=tiles):
            return [normalise(one, *stats) for one in tiles()]

        def theirs(processor=processor):
            found = processor(images=processor.fetch_images(list(sources)), return_tensors="pt")["pixel_values"]
            return [one if one.ndim == 4 else one[None] for one in found]

        yield name, tiles, ours, theirs, alike(stats, 0 if resample == "pillow" else 2e-6)


def main():
    bench = measure.Bench("pictures", __doc__)
    sizes = SIZES[:2] if bench.options.quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            for height, width in sizes:
                file = Path(folder) / f"{height}x{width}.jpg"
                picture(height, width).save(file, quality=90)
                shown = open_picture(str(file))
                batch = 4 if height * width < 4_000_000 else 2
                for what, sources in (("picture", [shown]), (f"{batch} pictures", [shown] * batch),
                                      ("JPEG", [str(file)]), (f"{batch} JPEG", [str(file)] * batch)):
                    for name, tiles, ours, theirs, same in sides(family, sources):
                        bench.row(f"{family}, {what} {width}x{height}, as {name}",
                                  {"vlmkit": ours, f"transformers {name}": theirs, "vlmkit, tiles only": tiles},
                                  same=same, memory=what == "picture")
    bench.end()


if __name__ == "__main__":
    main()
