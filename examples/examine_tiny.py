"""How much of its world does `tiny` know?   python examples/examine_tiny.py [FOLDER] [SCENES]

Exact matches for each skill, on scenes that no training has seen: their seeds begin at 2**40. FOLDER is a checkpoint,
`tiny` when it is left out; SCENES is how many for each skill, 200 when it is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import vlmkit
from vlmkit.parts.datasets.scenes import HELD_OUT, SKILLS, conversation, scene
from vlmkit.train.exam import exam, tell


def questions(scenes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """One question about each scene, drawn as it is asked for."""
    for skill in SKILLS:
        for seed in range(HELD_OUT, HELD_OUT + scenes):
            yield skill, conversation(scene(seed, skill))


def main() -> None:
    folder, scenes = (*sys.argv[1:], *("tiny", "200")[len(sys.argv) - 1 :])
    model, processor = vlmkit.load(folder)
    print(tell(exam(model, processor, questions(int(scenes)))))


if __name__ == "__main__":
    try:
        main()
    except vlmkit.VlmkitError as error:
        sys.exit(f"error: {error}")
