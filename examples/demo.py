"""A model that ships with vlmkit answers questions about pictures and a clip.   make demo"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import vlmkit
from vlmkit.errors import VlmkitError

MEDIA = Path(__file__).parent / "media"


def conversation(asked: dict[str, object]) -> list[dict[str, object]]:
    kinds = [("video" if str(name).endswith(".mp4") else "image", str(MEDIA / str(name))) for name in asked["media"]]
    content = [{"type": kind, kind: path} for kind, path in kinds]
    return [{"role": "user", "content": [*content, {"type": "text", "text": asked["question"]}]}]


def main() -> int:
    asked = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))
    model, processor = vlmkit.load("tiny")
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"tiny: {size:.1f} million parameters, on {next(model.parameters()).device}\n")
    start = time.perf_counter()
    answers = vlmkit.generate(model, processor, [conversation(a) for a in asked], max_new_tokens=24)
    seconds = time.perf_counter() - start
    right = [answer.strip().lower() == a["answer"] for a, answer in zip(asked, answers, strict=True)]
    for a, answer, good in zip(asked, answers, right, strict=True):
        print(f"{' + '.join(a['media']):<23} {a['question']:<42} {answer.strip():<16} {'right' if good else 'wrong'}")
    print(f"\n{sum(right)} of {len(right)} right, in {seconds:.1f} s. The pictures are in examples/media.")
    print('Ask your own:  .venv/bin/vlmkit generate tiny --image examples/media/shapes.png "What color is the star?"')
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VlmkitError as error:
        sys.exit(f"error: {error}")
