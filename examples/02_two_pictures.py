"""Several pictures in one question, and several questions in one call."""

from pathlib import Path

import vlmkit

media = Path(__file__).parent / "media"
model, processor = vlmkit.load("tiny")


def ask(question: str, *names: str) -> list[dict[str, object]]:
    pictures = [{"type": "image", "image": media / name} for name in names]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


conversations = [
    ask("Which picture has more objects?", "first.png", "second.png"),
    ask("In which picture is the star?", "first.png", "second.png"),
    ask("How many objects are there?", "five.jpg"),
]

# They have different lengths. Laid end to end, none of them is padded.
batch = processor(conversations)
print("tokens of each conversation:", batch.lens.tolist())

for answer in vlmkit.generate(model, processor, conversations):
    print(answer)
