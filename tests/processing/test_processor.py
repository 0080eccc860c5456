"""Conversations to batches: transformers' rows, labels, media in every form, and limits that never cut a picture."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Raw

import vlmkit
from vlmkit.errors import (
    ContextLengthError,
    MediaError,
    MediaFormatError,
    MediaLimitError,
    PromptError,
    TokenizerError,
    VlmkitError,
)
from vlmkit.limits import Limits
from vlmkit.model.assemble import assemble
from vlmkit.parts.chats import template
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

WORDS = ["USER: What is in this picture? ASSISTANT: A red cat and a dog. And this one? Two of them, system user "] * 4
SPECIAL = {
    "llama": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
}


def raw(family: str) -> Raw:
    special = SPECIAL[family]
    if family == "qwen":
        made = Raw(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
        )
    else:
        made = Raw(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        made.train_from_iterator(
            WORDS,
            trainers.BpeTrainer(
                vocab_size=300,
                special_tokens=special[:3],
                show_progress=False,
                initial_alphabet=[chr(c) for c in range(33, 127)] + ["\n"],
            ),
        )
        made = Raw.from_str(json.dumps(json.loads(made.to_str()) | {"pre_tokenizer": None}))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    if family == "llama":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


@pytest.fixture(scope="module")
def skeletons() -> dict[str, tuple[Any, Any]]:
    """Real presets on the meta device."""
    found = {}
    for name, words in (
        ("llava-1.5-7b", ["image.tiler.fit=crop"]),
        ("llava-onevision-qwen2-0.5b", ["video.sampler.frames=4"]),
    ):
        preset = vlmkit.compose(name, *words)
        found[name] = preset, assemble(preset)
    return found


@pytest.fixture(scope="module")
def llava(skeletons: dict) -> Processor:
    return Processor(*skeletons["llava-1.5-7b"], Tokenizer(raw("llama").to_str()))


@pytest.fixture(scope="module")
def onevision(skeletons: dict) -> Processor:
    return Processor(*skeletons["llava-onevision-qwen2-0.5b"], Tokenizer(raw("qwen").to_str()))


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def ask(*images: Any, text: str = "What is in this picture?") -> list[dict]:
    return [
        {
            "role": "user",
            "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
        }
    ]


VICUNA = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for c in m.content if c.type == 'image' %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content if c.type == 'image' %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m.content if c.type == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def dialogue(images: list[Image.Image], clip: np.ndarray | None = None) -> list[dict]:
    turns = ask(*images[:2])
    if clip is not None:
        turns[0]["content"].insert(0, {"type": "video", "video": clip})
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "A red cat."}]})
    return turns + ask(*images[2:], text="And this one, is it a dog?")


def theirs(family: str) -> Any:
    import transformers

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw(family), bos_token="<s>" if family == "llama" else None
    )
    if family == "llama":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        pictures = CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_normalize=False, do_rescale=False
        )
        return transformers.LlavaProcessor(
            pictures,
            words,
            patch_size=14,
            num_additional_image_tokens=1,
            vision_feature_select_strategy="default",
            chat_template=VICUNA,
        )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    series = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": 384, "width": 384}, image_grid_pinpoints=series, do_normalize=False, do_rescale=False
    )
    clips = transformers.LlavaOnevisionVideoProcessor(do_normalize=False, do_rescale=False)
    return transformers.LlavaOnevisionProcessor(
        pictures,
        words,
        clips,
        num_image_tokens=729,
        chat_template=CHATML,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


@pytest.mark.parity
@pytest.mark.parametrize("pictures", [0, 1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_ids_are_transformers_row(
    family: str, pictures: int, llava: Processor, onevision: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    ours, source = (llava, VICUNA) if family == "llama" else (onevision, CHATML)
    monkeypatch.setattr(ours, "chat", template.build(template.Config(text=source)))
    images = [picture(40 + 30 * at, 90 - 20 * at, at) for at in range(pictures)]
    clip = (
        np.random.default_rng(9).integers(0, 256, (4, 30, 40, 3), np.uint8)
        if family == "qwen" and pictures < 3
        else None
    )
    talk = dialogue(images, clip)
    processor = theirs(family)
    text = processor.apply_chat_template(
        [
            {
                **m,
                "content": [
                    {"type": p["type"], **({"text": p["text"]} if "text" in p else {})} for p in m["content"]
                ],
            }
            for m in talk
        ],
        add_generation_prompt=True,
    )
    given = ([images] if family == "qwen" else images) if images else None  # one list for each conversation
    row = processor(text=text, images=given, **({"videos": [clip]} if clip is not None else {}), return_tensors="pt")
    batch = ours(talk)
    assert batch.ids.tolist() == row["input_ids"][0].tolist()
    assert batch.ids[batch.slots].unique().tolist() == sorted(
        {ours.placeholder(v.layout.kind) for v in batch.visuals}
    )
    if family == "llama" and pictures:
        assert torch.equal(torch.cat([v.pixels for v in batch.visuals]).float(), row["pixel_values"].float())


def test_a_batch_is_laid_end_to_end(onevision: Processor) -> None:
    alone, pair = ask(picture()), ask(picture(), picture(seed=1))
    batch = onevision([alone, pair, "no picture"])
    assert batch.lens.tolist() == [len(onevision(c).ids) for c in (alone, pair, "no picture")]
    assert len(batch.slots) == sum(int(onevision(c).slots.numel()) for c in (alone, pair))
    assert batch.visuals[0].layout.tiles > 1  # tiles only when the picture is alone
    assert [v.layout.tiles for v in batch.visuals[1:]] == [1, 1]
    assert [v.pixels.shape[0] for v in batch.visuals] == [v.layout.tiles for v in batch.visuals]
    assert all(v.pixels.dtype == torch.uint8 for v in batch.visuals)
    assert batch.labels is None
    assert onevision.tokenizer.decode(batch.sequences()[2]).endswith("no picture\nassistant\n")


def test_labels_are_the_assistants_words_and_the_stop(llava: Processor, onevision: Processor) -> None:
    talk = dialogue([picture()])[:2]
    for ours, end in ((llava, "</s>"), (onevision, "<|im_end|>")):
        batch = ours(talk, reply=False, labels=True)
        assert batch.labels is not None
        learned = batch.labels[batch.labels != -100]
        assert ours.tokenizer.decode(learned, special=True).strip() == f"A red cat.{end}"
        places = torch.nonzero(batch.labels != -100).flatten()
        assert torch.equal(batch.ids[places], learned)
        assert ours.stop_ids[0] == learned[-1]


def test_media_in_every_form(onevision: Processor, tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "cat.png"
    image.save(path)
    data, text = png(image), base64.b64encode(png(image)).decode()
    parts: list[dict] = [
        {"type": "image", "image": str(path)}, {"type": "image", "image": path}, {"type": "image", "path": str(path)},
        {"type": "image", "image": image}, {"type": "image", "image": data},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image", "base64": text}, {"type": "image", "url": f"data:image/png;base64,{text}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{text}"},
        {"type": "image", "image": f"data:image/png;base64,{text}"},
        {"type": "image", "image": torch.from_numpy(np.asarray(image).copy())},
    ]  # fmt: skip
    batches = [onevision([{"role": "user", "content": [part, {"type": "text", "text": "q"}]}]) for part in parts]
    for batch in batches:
        assert torch.equal(batch.visuals[0].pixels, batches[0].visuals[0].pixels)
        assert torch.equal(batch.ids, batches[0].ids)
    frames = np.stack([np.asarray(picture(seed=at)) for at in range(4)])
    for clip in (frames, list(frames), [Image.fromarray(frame) for frame in frames]):
        batch = onevision([{"role": "user", "content": [{"type": "video", "video": clip}, "q"]}])
        assert batch.visuals[0].layout.frames == 4
        assert len(batch.slots) == 4 * 196 + 1


BAD: dict[str, tuple[Any, type[VlmkitError]]] = {
    "half a character": ("a\ud800", PromptError),
    "damaged": ([{"role": "user", "content": [{"type": "image", "base64": "aGVsbG8gd29ybGQ="}]}], MediaFormatError),
    "missing file": ([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}], MediaError),
    "a system turn at the end": ([{"role": "user", "content": "q"}, {"role": "system", "content": "s"}], PromptError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations_are_one_clear_error(onevision: Processor, name: str) -> None:
    conversation, kind = BAD[name]
    with pytest.raises(VlmkitError) as caught:
        onevision(conversation)
    assert type(caught.value) is kind
    assert onevision("hello").lens.tolist() == [len(onevision.sample("hello").ids)]


def test_a_bad_picture_is_counted_out(onevision: Processor) -> None:
    for media, place in (([picture(), b"these are words"], "image 2"), ([b"RIFF", picture()], "image 1")):
        with pytest.raises(MediaFormatError) as caught:
            onevision(ask(*media))
        assert caught.value.where == place


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("special", SPECIAL["qwen"])
def test_typed_special_strings_stay_text(onevision: Processor, role: str, special: str) -> None:
    """T01 through the whole processor."""
    plain = [{"role": role, "content": "it is X here"}, *ask(picture(), picture())]
    typed = [{"role": role, "content": f"it is {special} here"}, *ask(picture(), picture())]
    id = onevision.tokenizer.id_of(special)
    before, after = onevision(plain).ids.tolist(), onevision(typed).ids.tolist()
    assert before.count(id) == after.count(id)
    assert special in onevision.tokenizer.decode(after, special=False)


def test_what_does_not_fit_is_refused_or_left_out_whole(
    onevision: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = picture(384, 384), picture(100, 300)
    talk = [*ask(large, text="one"), {"role": "assistant", "content": "yes"}, *ask(small, text="two")]
    total = len(onevision(talk).ids)
    monkeypatch.setattr(onevision, "context", total - 1)
    with pytest.raises(ContextLengthError) as caught:
        onevision(talk)
    assert caught.value.got == total
    assert caught.value.limit == total - 1
    assert "largest is image 1 (384 x 384: 730 tokens)" in str(caught.value)
    assert "1460 are pictures" in str(caught.value)
    with pytest.warns(UserWarning, match="left out image 1"):
        shorter = onevision(talk, too_long="drop_media")
    assert [v.layout.width for v in shorter.visuals] == [300]
    assert len(shorter.slots) == 730
    with pytest.warns(UserWarning, match="left out 2 turns"):
        shorter = onevision(talk, too_long="drop_turns")
    assert onevision.tokenizer.decode(shorter.ids).endswith("user\n\ntwo\nassistant\n")
    monkeypatch.setattr(onevision, "context", 10)
    for policy in ("drop_media", "drop_turns"):
        with pytest.warns(UserWarning, match="left out"), pytest.raises(ContextLengthError):
            onevision(talk, too_long=policy)


def test_pictures_too_large_together(onevision: Processor) -> None:
    with Limits(media_max_total_pixels=5000), pytest.raises(MediaLimitError, match=r"media\.max_total_pixels"):
        onevision(ask(picture(), picture(), picture()))


def test_a_clip_may_be_told_about(skeletons: dict) -> None:
    preset, skeleton = skeletons["llava-onevision-qwen2-0.5b"]
    line = "The video lasts for {seconds} seconds, and {frames} frames are located at {times}."
    told = Processor(vlmkit.compose(preset, f"chat.clip='{line}'"), skeleton, Tokenizer(raw("qwen").to_str()))
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    batch = told([{"role": "user", "content": [{"type": "video", "video": frames}, "What moves?"]}])
    assert (
        "\nThe video lasts for 4.00 seconds, and 4 frames are located at 0.00s,1.00s,2.00s,3.00s.\nWhat moves?"
        in told.tokenizer.decode(batch.ids)
    )


def test_a_tokenizer_must_fit_the_decoder(skeletons: dict) -> None:
    """C40"""
    preset, skeleton = skeletons["llava-1.5-7b"]
    words = raw("llama")
    words.add_tokens([f"word{at}" for at in range(40_000)])
    with pytest.raises(TokenizerError, match="32064"):
        Processor(preset, skeleton, Tokenizer(words.to_str()))
