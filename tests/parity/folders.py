"""Folders as llava-hf publishes them, small: saved by transformers itself, then changed file by file."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import small
import theirs
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from vlmkit.compose import folder as strangers

GONE = object()  # a field that is taken out

# chat templates of the published families (llava-family.md, 4.3): pictures first, then clips, then words
_EACH = "{% for c in m['content'] | selectattr('type', 'equalto', 'KIND') %}{{ WHAT }}{% endfor %}"
_WORDS = _EACH.replace("KIND", "text").replace("WHAT", "c['text']")
_MEDIA = "".join(_EACH.replace("KIND", kind).replace("WHAT", f"'<{kind}>'") for kind in ("image", "video"))
_LINES = _MEDIA.replace(">'", ">\\n'")
_ASKED = "{% if add_generation_prompt %}{{ 'REPLY' }}{% endif %}"
_CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}" + _MEDIA + "{{ '\\n' }}" + _WORDS
           + "{{ '<|im_end|>' }}{% endfor %}")
TEMPLATES = {
    "vicuna": "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}" + _LINES
              + "{% if m['role'] == 'assistant' %}{% generation %}" + _WORDS + "{{ ' ' }}{% endgeneration %}{% else %}"
              + _WORDS + "{{ ' ' }}{% endif %}{% endfor %}" + _ASKED.replace("REPLY", "ASSISTANT:"),
    "mistral": "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<<SYS>>\\n' }}" + _WORDS
               + "{{ '\\n<</SYS>>\\n\\n' }}{% elif m['role'] == 'user' %}{{ '[INST] ' }}" + _LINES + _WORDS
               + "{{ ' [/INST]' }}{% else %}{{ ' ' }}" + _WORDS + "{{ '<\\\\s> ' }}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}" + _LINES + _WORDS
              + "{{ '<|im_end|>\\n' }}{% endfor %}" + _ASKED.replace("REPLY", "<|im_start|>assistant\\n"),
    "chatml-old": _CHATML + _ASKED.replace("REPLY", "<|im_start|>assistant\\n"),
    "interleave": _CHATML + _ASKED.replace("REPLY", "<|im_start|>assistant"),
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\\n\\n' }}" + _MEDIA + "{{ '\\n' }}"
              + _WORDS + "{{ eos_token }}{% endfor %}" + _ASKED.replace("REPLY", "[assistant]\\n\\n"),
    "vip": "{% for m in messages %}{% if m['role'] == 'user' %}{{ '###Human: ' }}{% elif m['role'] == 'assistant' %}"
           "{{ '###Assistant: ' }}{% endif %}" + _LINES + _WORDS + "{% endfor %}"
           + _ASKED.replace("REPLY", "###Assistant:"),
}  # fmt: skip
CHATS = {"llava": "vicuna", "llava-crop": "llama3", "bakllava": "mistral", "interleave": "interleave",
         "next": "vicuna", "next-mistral": "mistral", "next-video": "vicuna", "onevision": "chatml",
         "onevision-tied": "chatml-old", "video-llava": "vicuna", "vip-llava": "vip"}  # fmt: skip


@cache
def llama_tokenizer() -> str:
    """tokenizer.json as Llama's: a space before the first word and after each special token, bytes, and a BOS."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    made.train_from_iterator(["USER: What is in it? ASSISTANT: A cat."] * 3, trainers.BpeTrainer(
        vocab_size=small.WORDS - 3, show_progress=False, special_tokens=[*small.SPECIAL[:3], *bytes_]))
    bare = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"added_tokens": []}))
    special = [*small.SPECIAL[:3], "<image>", "<video>", "<pad>"]
    bare.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bare.to_str()


def save(name: str, folder: Path, weights: bool = True, **how: Any) -> Path:
    """A model of `theirs`, its processor and a chat template of its family, all written by transformers."""
    if weights:
        theirs.model(name).save_pretrained(folder, **how)
    else:
        theirs.configuration(name).save_pretrained(folder)
    processor = copy.deepcopy(theirs.reader(name).processor)
    processor.chat_template = TEMPLATES[CHATS[name]]
    words = processor.tokenizer
    words.bos_token = "<s>" if small.bos(name) else None
    words.eos_token = "</s>" if small.bos(name) else "<|im_end|>"
    if name.startswith("onevision"):  # the class alone would normalise clips with CLIP's
        processor.video_processor.image_mean = processor.video_processor.image_std = theirs.HALF
    processor.save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file; `__` goes inside, GONE takes out."""
    tree = json.loads(file.read_text()) if file.exists() else {}
    for path, value in changes.items():
        *inside, key = path.split("__")
        node = tree
        for step in inside:
            node = node.setdefault(step, {})
        node[key] = value
        if value is GONE:
            del node[key]
    file.write_text(json.dumps(tree, indent=2))


def apart(folder: Path) -> Path:
    """Processors as 4.x wrote them: a file for pictures, a file for clips, and the rest."""
    whole = json.loads((folder / "processor_config.json").read_text())
    for kind, file in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json")):
        if f"{kind}_processor" in whole:
            (folder / file).write_text(json.dumps(whole.pop(f"{kind}_processor")))
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder


def renamed(folder: Path, new: Path, change: Callable[[str], str], **more: torch.Tensor) -> Path:
    """A copy whose tensors have other names; `more` are added."""
    shutil.copytree(folder, new)
    found = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(found | more, new / "model.safetensors", {"format": "pt"})
    return new


def ours(talks: list[small.Talk]) -> list[Any]:
    return [talk.messages for talk in talks]


def read(name: str, folder: Path, talks: list[small.Talk]) -> dict[str, torch.Tensor]:
    """The conversations as transformers reads them with this folder's files: template, tokenizer, PIL's pixels."""
    use = transformers.AutoProcessor.from_pretrained(folder)
    use.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    asked = [list(_messages(talk)) for talk in talks]
    found = dict(use.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True,
                                         return_tensors="pt", processor_kwargs={"padding": True}))
    if "pixel_values_images" in found:  # Video-LLaVA's processor still writes the old name
        found["pixel_values"] = found.pop("pixel_values_images")
    if clips := [frames for talk in talks for frames in talk.clips]:  # their video processors are torchvision's only
        cut = [theirs.reader(name).frames(frames, return_tensors="pt")["pixel_values"] for frames in clips]
        found["pixel_values_videos"] = torch.stack(cut)
    return found


def _messages(talk: small.Talk) -> Iterator[dict[str, Any]]:
    for message in talk.messages:
        parts = [part | {"video": torch.stack([theirs._raw(frame) for frame in part["video"]])}
                 if part["type"] == "video" else part for part in message["content"]]
        yield {"role": message["role"], "content": parts}


def described(folder: Path) -> Any:
    """What the folder says, as sections and notes."""
    return strangers.describe(folder, "llava-hf")
