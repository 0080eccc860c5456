"""Ask a trained model about a picture."""

from pathlib import Path

import vlmkit

media = Path(__file__).parent / "media"
model, processor = vlmkit.load("tiny")

# A question and its pictures: the short way.
print(vlmkit.generate(model, processor, "What color is the star?", images=[media / "shapes.png"]))

# A conversation, as other libraries write it too; `details` tells what it cost.
conversation = [
    {"role": "user", "content": [
        {"type": "image", "image": media / "shapes.png"},
        {"type": "text", "text": "What shape is the red object?"},
    ]},
]  # fmt: skip
answer = vlmkit.generate(model, processor, conversation, details=True)
print(f"{answer.text}   ({answer.visual_tokens} of {answer.prompt_tokens} tokens are the picture)")

# Word by word.
for piece in vlmkit.stream(model, processor, conversation):
    print(piece, end="", flush=True)
print()
