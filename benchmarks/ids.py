"""Conversation to ids: the chat's text, its tokens, and as many placeholders as a picture has tokens.

    python benchmarks/ids.py

Both sides start from the same messages with a PIL picture and end with a tensor of ids. The picture is looked at and
its tokens are counted within the time; its pixels are cut beforehand on both sides: that has a benchmark of its own.
transformers runs `apply_chat_template(tokenize=True)` with a template as its published checkpoints have them; vlmkit
writes the same text by its table of styles ("styles") and, as for an imported folder, with that template in a process
for templates ("jinja").
"""

import sys
from functools import partial
from pathlib import Path

import torch
from measure import Bench
from models import SIZES, _words, preset, reader

from vlmkit.model.assemble import assemble
from vlmkit.parts.chats import template as jinja
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
import small

WORDS = """{% for message in messages %}{{ $open }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}\
{{ $close }}{% endfor %}{% if add_generation_prompt %}{{ '$reply' }}{% endif %}"""
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions. ")
TEMPLATES = {
    "llava": VICUNA + WORDS.replace("$open", "'USER: ' if message['role'] == 'user' else 'ASSISTANT: '").replace(
        "$close", "' ' if message['role'] == 'user' else '</s>'").replace("$reply", "ASSISTANT:"),
    "onevision": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + WORDS.replace(
        "$open", "'<|im_start|>' + message['role'] + '\\n'").replace("$close", "'<|im_end|>\\n'").replace(
        "$reply", "<|im_start|>assistant\\n"),
}
TEMPLATES["next"] = TEMPLATES["llava"]
TIMES = 20  # conversations one after the other: a call alone takes less than a clock tells well
ASKED = "What is shown in this picture, and where in it is the person that looks at us?"
SMALL, LARGE = (480, 640), (1152, 1536)
CASES = [("llava", SMALL, 1), ("next", SMALL, 1), ("onevision", SMALL, 1), ("onevision", LARGE, 1),
         ("onevision", LARGE, 9)]  # family, height and width, turns


def talk(size, turns):
    first = [{"type": "image", "image": small.picture(*size)}, {"type": "text", "text": ASKED}]
    said = [{"role": "user", "content": first}]
    for at in range(1, turns):
        said.append({"role": ("user", "assistant")[at % 2], "content": [{"type": "text", "text": f"{ASKED} ({at})"}]})
    return said


class Cut(Processor):
    """Ours, with the pixels of a picture at hand."""

    def _tiles(self, planned):
        found = self.__dict__.setdefault("cut", {})
        if planned.layout not in found:
            found[planned.layout] = super()._tiles(planned)
        return found[planned.layout]


def known(made, pictures):
    """Theirs, with the pixels of a picture at hand."""
    pixels = made.image_processor(pictures, return_tensors="pt")

    class Known(type(made.image_processor)):
        def __call__(self, *_, **__):
            return pixels

    made.image_processor.__class__ = Known
    return made


def ours(processor, said):
    return [processor(said).ids for _ in range(TIMES)][-1]


def published(processor, said, template):
    return [processor.apply_chat_template(said, chat_template=template, add_generation_prompt=True, tokenize=True,
                                          return_tensors="pt")[0] for _ in range(TIMES)][-1]


def same(ours, theirs):
    assert torch.equal(ours, theirs), f"{len(ours)} and {len(theirs)} ids, or others"


def main():
    bench = Bench("ids", __doc__)
    shape, prepared = SIZES["7b"], {}
    for family, size, turns in CASES[:3] if bench.options.quick else CASES:
        said, template = talk(size, turns), TEMPLATES[family]
        if family not in prepared:
            plan, words = preset(family, shape), _words(small.bos(family), shape.vocab)
            chats = {"styles": plan.chat, "jinja": jinja.Config(text=template, use="template")}
            plans = {name: plan.model_copy(update={"chat": chat}) for name, chat in chats.items()}
            prepared[family] = {name: Cut(each, assemble(each), Tokenizer(words)) for name, each in plans.items()}
        theirs = partial(published, known(reader(family, shape), [said[0]["content"][0]["image"]]), said, template)
        for chat, processor in prepared[family].items():
            row = processor(said)
            bench.row(f"{family}, {turns} turns, {len(row.slots)} of {len(row.ids)} ids, {chat}",
                      {"vlmkit": partial(ours, processor, said), "transformers": theirs}, same=same, each=TIMES)
    bench.end()


if __name__ == "__main__":
    main()
