"""An export to llava-hf: transformers loads it whole and answers the same; so do we. What has no home is named."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import small  # noqa: E402
import theirs  # noqa: E402
from small import clip, picture  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.checkpoint.export import grown, write  # noqa: E402
from vlmkit.checkpoint.native import LOCK  # noqa: E402
from vlmkit.checkpoint.tensors import headers, read  # noqa: E402
from vlmkit.compose import folder as strangers  # noqa: E402
from vlmkit.compose.bind import sources  # noqa: E402
from vlmkit.errors import PresetError, WeightsError  # noqa: E402
from vlmkit.model.assemble import assemble  # noqa: E402
from vlmkit.parts.formats import hf_config  # noqa: E402
from vlmkit.parts.formats.files import Fields  # noqa: E402
from vlmkit.parts.formats.hf_write import text_config  # noqa: E402
from vlmkit.processing.processor import Processor  # noqa: E402
from vlmkit.processing.tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.parity
SPARE = list(range(small.WORDS, small.VOCAB))
NAMES = ["llava", "llava-crop", "bakllava", "vip-llava", "interleave", "next", "next-mistral", "next-video",
         "onevision", "onevision-tied", "video-llava"]  # fmt: skip
SEVEN = ["llava", "vip-llava", "interleave", "next", "next-video", "onevision", "video-llava"]
MOST = 12  # greedy tokens
CLIPS = ("next-video", "onevision", "onevision-tied", "video-llava")


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> a folder that transformers wrote."""
    @cache
    def folder(name: str) -> Path:
        place = tmp_path_factory.mktemp("hf") / name
        theirs.model(name).save_pretrained(place)
        theirs.reader(name).processor.save_pretrained(place)
        return place
    return folder


def ask(*parts: Any, text: str = "What is in it?") -> list[dict[str, Any]]:
    """A question about some pictures and clips."""
    shown = [{"type": kind, kind: part} for part in parts for kind in ["video" if isinstance(part, list) else "image"]]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def open_theirs(folder: Path) -> tuple[Any, Any]:
    """The export in transformers: nothing missing, nothing left over; pictures resized by Pillow as we do it."""
    model, told = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, attn_implementation={"text_config": "eager", "vision_config": "sdpa"})
    assert {kind: names for kind, names in told.items() if names} == {}
    reader = transformers.AutoProcessor.from_pretrained(folder)
    reader.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return model, reader


def same(ours: tuple[Any, Any], others: tuple[Any, Any], messages: list[dict[str, Any]]) -> None:
    """The same ids, logits and greedy tokens."""
    (model, processor), (hf, reader) = ours, others
    batch = processor([messages])
    given = reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                                       return_tensors="pt", processor_kwargs={"do_sample_frames": False})
    if "pixel_values_images" in given:
        given["pixel_values"] = given.pop("pixel_values_images")
    assert given["input_ids"][0].tolist() == batch.ids.tolist()
    with torch.inference_mode():
        found, wanted = model.logits(model(batch)), hf(**given).logits[0]
    assert wanted.std() > 0.2
    torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=0, atol=1e-5)
    hf.generation_config.eos_token_id = None
    spare = list(range(processor.tokenizer.size, wanted.shape[1]))
    answer = hf.generate(**given, max_new_tokens=MOST, do_sample=False, suppress_tokens=spare)[0, len(batch.ids):]
    said = vlmkit.generate(model, processor, messages, max_new_tokens=MOST, ignore_eos=True, details=True)
    assert said.ids == answer.tolist()


@pytest.mark.parametrize("name", SEVEN)
def test_answers_as_transformers_does(name: str, stored: Any, tmp_path: Path) -> None:
    ours = vlmkit.load(stored(name), attention="eager")
    if ours[0].video is not None:  # as many frames as there are
        preset = vlmkit.compose(str(stored(name)), "video.sampler.frames=4")
        ours = ours[0], Processor(preset, assemble(preset), ours[1].tokenizer)
    folder, _ = write(*ours, tmp_path / "out", "llava-hf")
    others = open_theirs(folder)
    side = ours[0].tower.side
    same(ours, others, ask(picture(70, 100, 3)))
    same(ours, others, [*ask(picture(60, 40, 1), picture(33, 50, 2)), {"role": "assistant", "content": "A cat."},
                        *ask(text=" And now?\n")])
    if name in CLIPS:
        same(ours, others, ask(clip(4, side, side)))

    model, processor = vlmkit.load(folder)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in ours[0].state_dict().items()}
    for turn in (ask(picture(70, 100, 3)), ask(text="Hello.")):
        assert processor([turn]).ids.tolist() == ours[1]([turn]).ids.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_tensor(name: str, stored: Any, tmp_path: Path) -> None:
    whole = ["tower.whole=true", *["video.tower.whole=true"] * (name == "video-llava")]
    vlmkit.save(*vlmkit.load(stored(name), *whole), tmp_path / "ours")
    folder, notes = write(*vlmkit.load(tmp_path / "ours"), tmp_path / "back", "llava-hf")
    assert not any("post_layernorm" in note for note in notes)
    before, after = (dict(read(headers(f))) for f in (stored(name), folder))
    assert any(".vision_model." in key for key in after)  # as all published folders, and unlike 5.23, have it
    after = {key.replace(".vision_model.", "."): tensor for key, tensor in after.items()}
    assert sorted(after) == sorted(before)
    assert [key for key, tensor in before.items() if not torch.equal(tensor, after[key])] == []
    old, new = (json.loads((f / "config.json").read_text()) for f in (stored(name), folder))
    for key in ("model_type", "architectures", "image_token_index", "vision_feature_layer", "image_grid_pinpoints",
                "vision_feature_select_strategy", "spatial_pool_mode", "vision_aspect_ratio", "vision_config"):
        assert {"projection_dim"} >= _unlike(old.get(key), new.get(key))


def _unlike(old: Any, new: Any) -> set[str]:
    """What an old mapping says and the new one contradicts; of other values, whether they differ."""
    if isinstance(old, dict):
        return {key for key, value in new.items() if old.get(key, value) != value}
    return set() if old == new else {str((old, new))}


def make(name: str, *words: str, tokenizer: str = "") -> tuple[Any, Processor]:
    """A small random model of a shipped preset, changed by words."""
    preset = vlmkit.compose(small.preset(name), *words)
    model = vlmkit.build(preset).eval()
    small.scatter(model, 1)
    return model, Processor(preset, assemble(preset), Tokenizer(tokenizer or small.tokenizer(small.bos(name))))


@pytest.mark.parametrize(("name", "words", "where", "says"), [
    ("llava", ["projector=linear"], "projector", "linear"),
    ("llava", ["projector=pixel_shuffle"], "projector", "{use: mlp, depth: 2}"),
    ("llava", ["projector.depth=3"], "projector.depth", "projector.depth=2"),
    ("llava", ["image.packer.newline=end"], "image.packer.newline", "image.packer.newline=none"),
    ("llava", ["image.packer=slowfast"], "image.packer", "flat or image.packer=anyres"),
    ("llava", ["image=null", "video={tiler: {use: square}, packer: flat, sampler: uniform}"], "image", "no pictures"),
    ("llava", ["tower={use: timm, model: vit_tiny_patch16_224, options: {img_size: 32, embed_dim: 16, num_heads: 2}}"],
     "tower.model", "CLIP or SigLIP"),
    ("llava", ["image.tower={use: timm, model: resnet10t, side: 64}"], "image.tower", "image.tower=null"),
    ("llava", ["decoder.bias=true", "decoder.norms=true"], "decoder", "decoder.norms=false"),
    ("vip-llava", ["projector.bias=false"], "projector.bias", "projector.bias=true"),
    ("vip-llava", ["tower.prefix=keep"], "tower.prefix", "tower.prefix=drop"),
    ("next", ["image.packer.unpad=false"], "image.packer.unpad", "llava_next is the nearest class"),
    ("next", ["tower.prefix=keep"], "tower.prefix", "tower.prefix=drop"),
    ("next-video", ["video.packer=slowfast"], "video.packer", "slowfast"),
    ("next-video", ["video.packer.newline=row"], "video.packer.newline", "video.packer.newline=none"),
    ("next-video", ["video.tiler.fit=pad"], "video.tiler.fit", "video.tiler.fit=crop"),
    ("next-video", ["video.sampler.rule=linspace"], "video.sampler.rule", "video.sampler.rule=floor"),
    ("next-video", ["tower.options.img_size=70"], "video.packer.stride", "5 x 5"),
    ("next-video", ["chat.clip=A clip of {seconds} seconds."], "chat.clip", "chat.clip="),
    ("onevision", ["image.packer.budget=4.5"], "image.packer.budget", "image.packer.budget=4"),
    ("onevision", ["projector.norm=1e-5"], "projector.norm", "projector.norm=null"),
    ("onevision", ["tower.options.act_layer=gelu"], "tower.options", "gelu_pytorch_tanh"),
    ("onevision", ["video.packer.pool=average"], "video.packer.pool", "video.packer.pool=bilinear"),
    ("video-llava", ["video.tower.layer=-1"], "video.tower", "another tower"),
    ("video-llava", ["image.tiler.fit=pad"], "image.tiler.fit", "image.tiler.fit=crop"),
    ("llava-video", [], "video.sampler.rule, chat.clip, video.packer.newline", "the nearest: video.packer.newline=end"),
])
def test_what_has_no_home_is_named(name: str, words: list[str], where: str, says: str, tmp_path: Path) -> None:
    ours = make(name, *words)
    with pytest.raises(PresetError) as caught:
        write(*ours, tmp_path / "out", "llava-hf")
    assert caught.value.where == where
    assert says in str(caught.value)
    assert [*tmp_path.iterdir()] == []  # nothing was written


def test_tiny_has_no_home(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="ResNet has no home in llava-hf") as caught:
        vlmkit.export(*vlmkit.load("tiny"), tmp_path / "out")
    assert caught.value.where == "tower.model"


def test_a_tensor_without_a_home_is_named(tmp_path: Path) -> None:
    ours = make("llava")
    ours[0].decoder.blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(PresetError) as caught:
        write(*ours, tmp_path / "out", "llava-hf")
    assert "decoder: 2, such as decoder.blocks.0.extra.weight" in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [
    ("llava", ["decoder.bias=true"]),  # Llama with a bias is Qwen2
    ("llava", ["decoder.window=9"]),  # and with a window Mistral
    ("llava", ["decoder={use: transformer, family: qwen3, width: 32, layers: 2, heads: 4, kv_heads: 2, head: 16, "
               "ffn: 48, vocab: 384, context: 512}"]),
    ("llava", ["decoder.rope={type: llama3, factor: 8.0, original: 64}"]),
    ("llava", ["decoder.rope={type: dynamic, factor: 4.0, original: 64}", "decoder.context=256"]),
    ("llava", ["projector.act=relu", "projector.bias=false", "tower.prefix=keep", "image.tiler.fit=squash"]),
    ("llava", ["tower.layer=[1, -1]"]),
    ("interleave", ["image.tiler.fit=crop", "decoder.window=9", "decoder.tied=false"]),
    ("onevision", ["image.packer.budget=null", "image.tiler.largest=[2, 2]", "video=null"]),
    ("onevision", ["image.packer.budget=2.0", "image.tiler.largest=null",
                   "image.tiler.grids=[[1, 2], [2, 2]]"]),
    ("next", ["tower.whole=true", "tower.layer=1"]),
    ("next-video", ["video.packer.pool=conv", "video.sampler.frames=4"]),
    ("next-video", ["video.packer.pool=max", "video.sampler.frames=4", "tower.mean=[0.1, 0.2, 0.3]",
                    "video.tiler.fit=squash"]),
])  # fmt: skip
def test_changed_models_have_a_home_too(name: str, words: list[str], tmp_path: Path) -> None:
    ours = make(name, *words)
    folder, _ = write(*ours, tmp_path / "out", "llava-hf")
    same(ours, open_theirs(folder), ask(picture(70, 100, 3)))
    if name == "next-video":
        same(ours, open_theirs(folder), ask(clip(4, 56, 56)))
    again = vlmkit.load(tmp_path / "out")
    assert torch.equal(*(m.logits(m(p(ask(picture(70, 100, 3))))) for m, p in (ours, again)))


def test_placeholders_that_are_missing_are_added(tmp_path: Path) -> None:
    """As for the authors' checkpoints, whose vocabulary has no <image>, and no spare row for one."""
    made = json.loads(small.tokenizer(True))
    size = small.WORDS - 2
    made["added_tokens"] = [t for t in made["added_tokens"] if t["content"] not in ("<image>", "<video>")]
    words = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    made["model"]["vocab"] = {word: at for at, word in enumerate(w for w in words if w not in ("<image>", "<video>"))}
    for token in made["added_tokens"]:
        token["id"] = made["model"]["vocab"][token["content"]]
    made["post_processor"]["special_tokens"]["<s>"]["ids"] = [made["model"]["vocab"]["<s>"]]
    ours = make("llava", "tokenizer.image=<unk>", f"decoder.vocab={size}", tokenizer=json.dumps(made))
    folder, notes = write(*ours, tmp_path / "out", "llava-hf")
    assert any(f"<image> is new, id {size}" in note for note in notes)
    assert any("2 rows are added" in note for note in notes)  # up to a multiple of 64
    config = json.loads((folder / "config.json").read_text())
    assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (size, 320)

    hf, reader = open_theirs(folder)
    messages = ask(picture(70, 100, 3))
    given = reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                                       return_tensors="pt")
    with torch.inference_mode():
        found, wanted = ours[0].logits(ours[0](ours[1](messages))), hf(**given).logits[0]
    torch.testing.assert_close(found, wanted[:, :size], rtol=0, atol=1e-5)
    assert int(wanted.argmax(1).max()) < size  # a new row is never the likeliest
    again = vlmkit.load(folder)
    with torch.inference_mode():
        read = again[0].logits(again[0](again[1](messages)))
    torch.testing.assert_close(read[:, :size], found, rtol=0, atol=1e-6)


def test_frames_for_each_second(tmp_path: Path) -> None:
    ours = make("onevision", "video.sampler={use: fps, fps: 2.0, most: 8}")
    folder, notes = write(*ours, tmp_path / "out", "llava-hf")
    assert any("does not stop at 8 frames" in note for note in notes)
    sampler = vlmkit.compose(str(folder)).video.sampler
    assert (sampler.use, sampler.fps) == ("fps", 2.0)


def test_grown_rows_are_the_mean() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert grown(table, 4).tolist() == [[1, 2], [3, 6], [2, 4], [2, 4]]
    assert grown(table, 2) is table


def test_shards_and_dtype(tmp_path: Path) -> None:
    model, processor = make("llava")
    model.to(torch.bfloat16)
    folder, _ = write(model, processor, tmp_path / "out", "llava-hf", max_shard_size=60_000)
    assert len([*folder.glob("model-0000*-of-0000*.safetensors")]) > 1
    hf, told = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert {kind: names for kind, names in told.items() if names} == {}
    assert {p.dtype for p in hf.parameters()} == {torch.bfloat16}
    again, _ = vlmkit.load(folder)
    assert torch.equal(again.decoder.embed.weight, model.decoder.embed.weight)


def test_what_stands_there_is_not_lost(stored: Any, tmp_path: Path) -> None:
    ours = make("llava")
    folder = tmp_path / "out"
    shutil.copytree(stored("llava"), folder)  # somebody's, not an export
    before = sorted(file.name for file in folder.iterdir())
    with pytest.raises(WeightsError, match="nothing was written"):
        vlmkit.export(*ours, folder)
    assert sorted(file.name for file in folder.iterdir()) == before
    shutil.rmtree(folder)
    with pytest.warns(UserWarning) as notes:  # noqa: PT030
        vlmkit.export(*ours, folder)
    assert [str(note.message).partition(":")[0] for note in notes] == ["tower", "chat"]
    first = (folder / LOCK).read_bytes()
    with torch.no_grad():
        ours[0].decoder.norm.weight.mul_(2)
    with pytest.raises(PresetError):
        vlmkit.export(make("llava", "projector=linear")[0], make("llava", "projector=linear")[1], folder)
    assert (folder / LOCK).read_bytes() == first
    write(*ours, folder, "llava-hf")
    assert (folder / LOCK).read_bytes() != first
    assert torch.equal(vlmkit.load(folder)[0].decoder.norm.weight, ours[0].decoder.norm.weight)


def test_formats_that_are_not_there() -> None:
    with pytest.raises(vlmkit.VlmkitError, match="no format named 'llavahf'"):
        vlmkit.export(*make("llava"), "out", format="llavahf")


@pytest.mark.parametrize("name", [n for n in vlmkit.presets() if "/" not in n])
def test_decoders_read_back_as_written(name: str) -> None:
    decoder = vlmkit.compose(name).decoder
    said = text_config(decoder, decoder.vocab)
    back = hf_config.decoder(Fields(said, Path("config.json")))
    wanted = decoder.model_dump(mode="json") | {"size": None}
    if decoder.rope.type == "linear":  # positions before stretching are whole
        assert wanted.pop("context") == pytest.approx(back.pop("context"), abs=3)
    assert {key: back["rope"].get(key, value) for key, value in wanted["rope"].items()} == wanted.pop("rope")
    assert {key: value for key, value in back.items() if key != "rope"} == wanted


@pytest.mark.parametrize(("name", "depth", "layer"), [
    ("llava-1.5-7b", 23, -1), ("vip-llava-7b", 23, [-1, -4, -7, -10, 6]), ("llava-next-34b", 23, -1),
    ("llava-next-video-7b", 23, -1), ("llava-onevision-qwen2-0.5b", 26, -1), ("video-llava-7b-hf", 23, -1)])
def test_published_presets_read_back_as_they_were(name: str, depth: int, layer: Any, tmp_path: Path) -> None:
    """At full size, on the meta device: all files but the weights, read again."""
    preset = vlmkit.compose(name)
    skeleton = assemble(preset)
    (tmp_path / "tokenizer.json").write_text(small.tokenizer(True))
    strangers.make("llava-hf").dress(tmp_path, preset, skeleton)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["num_hidden_layers"] == depth
    assert config["vision_feature_layer"] == layer
    again = vlmkit.compose(str(tmp_path))
    own = ("name", "about", "weights", "tokenizer", "chat", "decoder.size", "tower", "video.tower")
    before, after = ({k: s.value for k, s in sources(p).items() if not k.startswith(own)} for p in (preset, again))
    assert after == before
    other = assemble(again)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in skeleton.state_dict().items()}
    assert (other.tower.mean, other.tower.std, other.tower.read) == (
        skeleton.tower.mean, skeleton.tower.std, skeleton.tower.read)
