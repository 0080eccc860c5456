"""An assembled model as transformers knows models: auto classes, pipeline, generate, Trainer, and a LoRA of peft."""

from __future__ import annotations

import copy
import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
import vlmkit_transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

import vlmkit
from vlmkit.errors import PlaceholderError, PresetError, PresetSafetyError, PromptError

HF_DECODER = {"model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 16,
              "vocab_size": 464, "max_position_embeddings": 512, "sliding_window": 32}  # fmt: skip
HF_TOWER = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16}  # fmt: skip
SMALL = ("tower.options={channels: [8, 8, 8, 8], layers: [1, 1, 1, 1], stem_width: 8}", "decoder.width=32",
         "decoder.layers=2", "decoder.ffn=48")  # fmt: skip
FOREIGN = (f"tower={{use: transformers, layer: -1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], config: {HF_TOWER}}}",
           f"decoder={{use: transformers, config: {HF_DECODER}}}")  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The model that ships with vlmkit, its processor, and both as transformers knows them."""
    model, processor = vlmkit.load("tiny")
    return model, processor, *vlmkit_transformers.wrap(model, processor)


def made(words: tuple[str, ...] = SMALL) -> Any:
    """The same with random weights, of two blocks."""
    processor = vlmkit.load("tiny")[1]
    preset = vlmkit.compose("tiny", *words)
    model = vlmkit.build(preset, seed=2)
    shown = type(processor)(preset, vlmkit.model.assemble.assemble(preset), processor.tokenizer)
    return model, shown, *vlmkit_transformers.wrap(model, shown)


@cache
def lessons() -> list[Any]:
    data = vlmkit.compose("tiny", "runs/tiny").data.build()
    return [data[i] for i in range(4)]


def questions() -> list[Any]:
    """Of one turn each, with pictures and without."""
    asked = [[turn for turn in lesson if turn["role"] == "user"][:1] for lesson in lessons()[:3]]
    return [*asked, [{"role": "user", "content": "Just words."}]]


def prompt(words: Any, asked: list[Any]) -> Any:
    return words.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)


def answers(theirs: Any, words: Any, asked: list[Any], **more: Any) -> list[str]:
    given = prompt(words, asked)
    ids = theirs.generate(**given, max_new_tokens=12, **more)
    return words.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)


def close(given: Any, expected: Any) -> None:
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_a_padded_batch_gives_the_numbers_of_the_row(tiny: Any) -> None:
    model, processor, theirs, words = tiny
    asked = [*questions(), questions()[0]]
    given, batch = prompt(words, asked), processor(asked)
    with torch.no_grad():
        logits, expected = theirs(**given).logits, model.logits(model(batch))
        last = theirs(**given, logits_to_keep=1).logits
    real = given["attention_mask"].bool()
    assert not real.all()
    assert given["input_ids"][real].tolist() == batch.ids.tolist()
    close(logits[real], expected)
    close(last, logits[:, -1:])
    kinds = {v.layout.kind for v in batch.visuals}
    assert given["mm_token_type_ids"].unique().tolist() == [0, *sorted({"image": 1, "video": 2}[k] for k in kinds)]


def test_pictures_and_clips_of_a_batch_find_their_rows(tiny: Any) -> None:
    model, processor, theirs, words = tiny
    noise = torch.Generator().manual_seed(0)
    frames = [torch.randint(256, (40, 60, 3), dtype=torch.uint8, generator=noise).numpy() for _ in range(6)]
    picture = {"type": "image", "image": Image.fromarray(frames[0])}
    wide = {"type": "image", "image": Image.fromarray(frames[1]).resize((200, 50))}
    clip, text = {"type": "video", "video": frames}, {"type": "text", "text": "And?"}
    talks = [[{"role": "user", "content": content}] for content in
             ([clip, picture, text], [text], [wide, text], [picture, clip, wide, text])]  # fmt: skip
    given = prompt(words, talks)
    with torch.no_grad():
        logits, expected = theirs(**given).logits, model.logits(model(processor(talks)))
    close(logits[given["attention_mask"].bool()], expected)
    assert given["mm_token_type_ids"].unique().tolist() == [0, 1, 2]
    texts = words.apply_chat_template(talks, add_generation_prompt=True)
    images = [[picture["image"]], [], [wide["image"]], [picture["image"], wide["image"]]]
    written = words(text=texts, images=images, videos=[frames, frames])
    assert written["input_ids"].tolist() == given["input_ids"].tolist()
    assert torch.equal(written["pixel_values_videos"], given["pixel_values_videos"])


@pytest.mark.parametrize("words_of", [SMALL, FOREIGN], ids=["vlmkit", "transformers"])
def test_generate_gives_what_vlmkit_generates(words_of: tuple[str, ...]) -> None:
    model, processor, theirs, words = made(words_of)
    theirs.eval()
    theirs.generation_config.suppress_tokens = list(range(processor.tokenizer.size, 464))  # vlmkit never says those
    asked = questions()
    expected = vlmkit.generate(model, processor, asked, max_new_tokens=12)
    assert len(set(expected)) > 1
    assert answers(theirs, words, asked, do_sample=False) == expected
    assert answers(theirs, words, asked, do_sample=False, use_cache=False) == expected


def test_beams_carry_their_pictures_and_their_cache(tiny: Any) -> None:
    _, _, theirs, words = tiny
    asked = questions()
    given = prompt(words, asked)
    more = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    with_cache = theirs.generate(**given, **more)
    assert with_cache.shape[0] == 3 * len(asked)
    assert torch.equal(with_cache, theirs.generate(**given, **more, use_cache=False))


def test_the_pipeline_says_what_vlmkit_says(tiny: Any) -> None:
    model, processor, theirs, words = tiny
    asked = questions()
    expected = vlmkit.generate(model, processor, asked, max_new_tokens=12)
    assert any(expected)
    pipe = pipeline("image-text-to-text", model=theirs, processor=words)
    said = pipe(text=asked, max_new_tokens=12, return_full_text=False)
    assert [one[0]["generated_text"] for one in said] == expected
    picture = next(part["image"] for part in asked[0][0]["content"] if part["type"] == "image")
    written = words.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}],
        add_generation_prompt=True)  # fmt: skip
    said = pipe(images=picture, text=written, max_new_tokens=12, return_full_text=False)
    assert said[0]["generated_text"] == vlmkit.generate(model, processor, "What is it?", images=[picture],
                                                        max_new_tokens=12)  # fmt: skip


@pytest.mark.parametrize("words_of", [SMALL, FOREIGN], ids=["vlmkit", "transformers"])
def test_a_folder_comes_back_by_the_auto_classes(words_of: tuple[str, ...], tmp_path: Path) -> None:
    _, _, theirs, words = made(words_of)
    theirs.eval().save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert type(AutoConfig.from_pretrained(tmp_path)) is vlmkit_transformers.VlmkitConfig
    again, reads = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (type(again), type(reads)) == (type(theirs), type(words))
    given, other = prompt(words, questions()), prompt(reads, questions())
    assert all(torch.equal(given[name], other[name]) for name in given)
    with torch.no_grad():
        assert torch.equal(again(**other).logits, theirs(**given).logits)
    assert again.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.vlm.projector.layers[0].weight.dtype == torch.bfloat16
    said = pipeline("image-text-to-text", model=str(tmp_path))(text=questions()[0], max_new_tokens=4)
    assert said[0]["generated_text"][-1]["role"] == "assistant"


def test_wrapping_changes_no_weight(tmp_path: Path) -> None:
    untied = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "vocab_size": 464, "max_position_embeddings": 512}  # fmt: skip
    model, processor, *_ = made((*FOREIGN[:1], f"decoder={{use: transformers, config: {untied}}}"))
    vlmkit.save(model, processor, tmp_path / "saved")
    loaded, reads = vlmkit.load(str(tmp_path / "saved"))
    before = copy.deepcopy(loaded.state_dict())
    theirs, _ = vlmkit_transformers.wrap(loaded, reads)
    assert theirs.vlm is loaded
    assert "decoder.head.lm_head.weight" in before
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_a_chat_template_goes_along(tmp_path: Path) -> None:
    (tmp_path / "say.jinja").write_text("{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
                                        "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}"
                                        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    chat = f"chat={{use: template, file: {tmp_path / 'say.jinja'}, stops: ['<|im_end|>']}}"
    _, _, theirs, words = made((*SMALL, chat))
    words.save_pretrained(tmp_path / "saved")
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "say.jinja").unlink()
    reads = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert reads.apply_chat_template(questions()[-1], add_generation_prompt=True) == "[user]Just words.[assistant]"


def test_labels_give_vlmkits_loss(tiny: Any) -> None:
    model, processor, theirs, words = tiny
    talks = lessons()[:3]
    given = words.apply_chat_template(talks, tokenize=True, labels=True)
    with torch.no_grad():
        close(theirs(**given).loss, vlmkit.loss(model, processor(talks, reply=False, labels=True)))
    assert (given["labels"] == -100).any()
    assert "labels" not in prompt(words, talks)


def trained(theirs: Any, words: Any, rate: float, folder: Path) -> list[float]:
    """The losses of a few steps of transformers' Trainer, always on the same lessons."""
    pytest.importorskip("accelerate")
    told = transformers.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, learning_rate=rate, logging_steps=1, report_to=[],
        remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
        gradient_accumulation_steps=2)
    trainer = transformers.Trainer(
        model=theirs, args=told, train_dataset=lessons(), processing_class=words,
        data_collator=lambda talks: words.apply_chat_template(talks, tokenize=True, labels=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("words_of", [SMALL, FOREIGN], ids=["vlmkit", "transformers"])
def test_the_trainer_teaches_it(words_of: tuple[str, ...], tmp_path: Path) -> None:
    model, _, theirs, words = made(words_of)
    before = copy.deepcopy(model.state_dict())
    losses = trained(theirs, words, 3e-3, tmp_path)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
    moved = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"tower", "projector", "decoder", "separators"}


@pytest.mark.parametrize(("words_of", "targets"), [
    (SMALL, r"vlm\.decoder\.blocks\.\d+\.attn\.[qv]"),
    (FOREIGN, r"vlm\.decoder\.model\.layers\.\d+\.self_attn\.[qv]_proj"),
], ids=["vlmkit", "transformers"])  # fmt: skip
def test_a_lora_learns_and_is_merged(words_of: tuple[str, ...], targets: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, processor, theirs, words = made(words_of)
    before = copy.deepcopy(model.state_dict())
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=64, target_modules=targets,
                                                          task_type="CAUSAL_LM"))  # fmt: skip
    assert adapted.get_nb_trainable_parameters()[0] == 2 * 4 * (32 + 32 + 32 + 16)  # q and v of two blocks
    losses = trained(adapted, words, 2e-2, tmp_path / "run")
    assert losses[-1] < losses[0] - 0.05
    given = prompt(words, questions())
    with torch.no_grad():
        learned = adapted.eval()(**given).logits
        adapted.save_pretrained(tmp_path / "lora")
        with adapted.disable_adapter():
            plain = adapted(**given).logits
        merged = adapted.merge_and_unload()
        close(merged(**given).logits, learned)
    assert (learned - plain).abs().max() > 1e-3
    moved = {name for name, tensor in merged.vlm.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if re.fullmatch(targets.removeprefix(r"vlm\.") + r"\.weight", name)}
    vlmkit.save(merged.vlm, processor, tmp_path / "merged")  # and is vlmkit's again
    again, reads = vlmkit.load(str(tmp_path / "merged"))
    with torch.no_grad():
        close(again.logits(again(reads(questions()))), learned[given["attention_mask"].bool()])


@pytest.mark.parametrize(("said", "error", "told"), [
    ({"decoder": {"use": "transformers", "file": "/etc/hostname"}}, PresetSafetyError, "asks for the file"),
    ({"chat": {"use": "template", "file": "/etc/hostname"}}, PresetSafetyError, "asks for the file"),
    ({"projector": {"use": "mlpp"}}, PresetError, "no projector named"),
    ({"decoder": {"use": "transformers", "config": {"model_type": "llama", "num_hidden_layers": 10**6}}}, PresetError,
     "at most 1024"),
])  # fmt: skip
def test_a_strangers_config_is_a_strangers_preset(tiny: Any, said: Any, error: Any, told: str, tmp_path: Path) -> None:
    _, _, theirs, words = tiny
    theirs.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json"):
        file = tmp_path / name
        data = json.loads(file.read_text())
        data["preset"] |= said
        data["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
        file.write_text(json.dumps(data))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(error, match=told):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    with pytest.raises(error, match=told):
        AutoProcessor.from_pretrained(tmp_path)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)[0]
    (tmp_path / "examples" / "media").mkdir(parents=True)
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "examples" / "media" / "shapes.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    asked = "What color is the star?", ["examples/media/shapes.png"]
    assert first == vlmkit.generate(*vlmkit.load("tiny"), *asked)
    assert type(names["model"]) is vlmkit_transformers.VlmkitForConditionalGeneration


def test_what_it_does_not_do_it_says(tiny: Any) -> None:
    _, _, theirs, words = tiny
    asked = questions()[0]
    with pytest.raises(PromptError, match="chat_template"):
        words.apply_chat_template(asked, chat_template="{{ messages }}", tokenize=True)
    with pytest.raises(PromptError, match="continue_final_message"):
        words.apply_chat_template(asked, continue_final_message=True, tokenize=True)
    with pytest.raises(PlaceholderError, match="a place for one more image"):
        words(text="<image> and <image>", images=[Image.new("RGB", (20, 20))])
    with pytest.raises(PlaceholderError, match="more media than places"):
        words(text="nothing", images=[Image.new("RGB", (20, 20))])
    with pytest.raises(PromptError, match="inputs_embeds"):
        theirs(input_ids=torch.ones(1, 2, dtype=torch.long), inputs_embeds=torch.ones(1, 2, 8))
    with pytest.raises(PresetSafetyError, match="holds no preset"):
        vlmkit_transformers.VlmkitForConditionalGeneration(vlmkit_transformers.VlmkitConfig())
