"""The files beside config.json: processors, tokenizer, chat template, generation settings; beside transformers' own."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

import folders  # noqa: E402
import theirs  # noqa: E402
from folders import GONE, TEMPLATES, edit  # noqa: E402
from small import Talk, picture, tokenizer  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.compose.bind import sources  # noqa: E402
from vlmkit.errors import CheckpointFormatError  # noqa: E402
from vlmkit.model.assemble import assemble  # noqa: E402
from vlmkit.parts.towers.timm import normalise  # noqa: E402
from vlmkit.processing.processor import Processor  # noqa: E402
from vlmkit.processing.tokenizer import Tokenizer  # noqa: E402

TALL, WIDE = picture(70, 33, 1), picture(48, 131, 2)
CLIP, HALF = [0.48145466, 0.4578275, 0.40821073], [0.5, 0.5, 0.5]
SQUARE = {"height": 56, "width": 56}


def bare(name, tmp_path, **processors):
    """A folder of one class without processors but those that are given, by kind."""
    theirs.configuration(name).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer(True))
    for kind, said in processors.items():
        (tmp_path / f"{kind}preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path


# pictures

LOOKS = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "crop_size": SQUARE},
    "clip of old": {"image_processor_type": "CLIPImageProcessor", "size": 56, "crop_size": 56, "do_center_crop": True},
    "fast": {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 56}, "crop_size": 56},
    "an exact size": {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": SQUARE},
    "an exact size, not cropped": {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": SQUARE,
                                   "do_center_crop": False},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "image_mean": HALF, "image_std": HALF},
    "siglip that pads a batch": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "do_pad": True},
    "padded": {"image_processor_type": "LlavaImageProcessor", "size": {"shortest_edge": 56}, "crop_size": SQUARE,
               "do_pad": True, "image_mean": HALF},
    "not padded": {"image_processor_type": "LlavaImageProcessor", "size": {"shortest_edge": 56}, "crop_size": SQUARE},
    "of no type": {"size": {"shortest_edge": 56}, "crop_size": SQUARE, "do_pad": True},
    "nulls": {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": None, "do_center_crop": None,
              "do_convert_rgb": None, "do_pad": None},
    "one number for three": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
                             "crop_size": SQUARE, "image_mean": 0.0, "image_std": 0.5},
    "own statistics": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
                       "crop_size": SQUARE, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 0.5, 0.25],
                       "rescale_factor": 0.00392156862745098, "resample": 3, "do_convert_rgb": True},
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS)
def test_pictures(looks, nested, tmp_path):
    """Old and new place of the same fields; pixels bit for bit."""
    folder = bare("llava", tmp_path, **{} if nested else {"": looks})
    if nested:
        edit(folder / "processor_config.json", image_processor=looks, processor_class="LlavaProcessor")
        edit(folder / "preprocessor_config.json", image_mean=[0.9] * 3, size=999)  # the new file goes before it
    model = assemble(vlmkit.compose(str(folder)))
    reader = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for image in (TALL, WIDE):
        found = normalise(model.image.tiler.cut(image, model.image.tiler.plan(image.height, image.width, True)),
                          model.tower.mean, model.tower.std)
        assert torch.equal(found, reader(image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(("field", "value"), [
    ("resample", 2), ("do_resize", False), ("do_rescale", False), ("do_normalize", None),
    ("rescale_factor", 1 / 127.5),
    ("image_mean", [0.5, 0.5]), ("image_mean", ["a", "b", "c"]), ("image_std", [0.5, 0, 0.5]), ("image_std", "half"),
    ("size", {"longest_edge": 56}), ("size", {"height": 56}), ("size", {"shortest_edge": 224}), ("size", [56, 56]),
    ("crop_size", 224), ("crop_size", {"height": 56, "width": 55}), ("do_center_crop", False), ("do_center_crop", None),
    ("do_pad", "yes"),
    ("image_processor_type", 7)])
def test_pictures_that_are_not_made_here(field, value, tmp_path):
    folder = bare("llava", tmp_path, **{"": {"size": {"shortest_edge": 56}, "crop_size": SQUARE, field: value}})
    with pytest.raises(CheckpointFormatError) as caught:
        vlmkit.compose(str(folder))
    assert str(caught.value).startswith(f"{folder / 'preprocessor_config.json'}: {field} ")


def test_the_place_of_a_nested_field_is_told(tmp_path):
    folder = bare("llava", tmp_path)
    edit(folder / "processor_config.json", image_processor__resample=0)
    with pytest.raises(CheckpointFormatError, match=r"processor_config.json: image_processor\.resample is 0"):
        vlmkit.compose(str(folder))


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_tiles_are_the_size_the_tower_sees(name, tmp_path):
    points = theirs.configuration(name).image_grid_pinpoints
    side = points[0][0]
    folder = bare(name, tmp_path, **{"": {"size": {"height": side, "width": side}, "image_grid_pinpoints": points}})
    vlmkit.compose(str(folder))
    edit(folder / "preprocessor_config.json", size={"height": 2 * side, "width": 2 * side})
    with pytest.raises(CheckpointFormatError, match=f"preprocessor_config.json: size makes tiles of {2 * side}"):
        vlmkit.compose(str(folder))
    edit(folder / "preprocessor_config.json", size=side, image_grid_pinpoints=points[1:])
    with pytest.raises(CheckpointFormatError, match=r"image_grid_pinpoints is another list than that of config.json"):
        vlmkit.compose(str(folder))


# clips

def test_clips(tmp_path):
    folder = bare("next-video", tmp_path, video_={"num_frames": 4, "size": {"shortest_edge": 56}, "crop_size": SQUARE})
    preset = vlmkit.compose(str(folder))
    assert (preset.video.sampler.use, preset.video.sampler.frames) == ("uniform", 4)
    assert sources(preset)["video.sampler.frames"].place == "video_preprocessor_config.json"
    edit(folder / "video_preprocessor_config.json", num_frames=None, fps=2)
    assert vlmkit.compose(str(folder)).video.sampler.fps == 2
    edit(folder / "processor_config.json", video_processor={"num_frames": 16, "do_resize": True})
    assert sources(vlmkit.compose(str(folder)))["video.sampler.frames"] == (16, "processor_config.json")
    edit(folder / "processor_config.json", video_processor__fps=1.0)
    with pytest.raises(CheckpointFormatError, match=r"video_processor.fps and num_frames exclude each other"):
        vlmkit.compose(str(folder))


def test_clips_of_older_folders_are_made_as_pictures_are(tmp_path):
    looks = {"size": SQUARE, "image_mean": HALF, "image_std": HALF, "image_processor_type": "CLIPImageProcessor"}
    preset = vlmkit.compose(str(bare("video-llava", tmp_path, **{"": looks})))
    assert (preset.image.tiler.fit, preset.video.tiler.fit) == ("squash", "squash")
    assert preset.tower.mean == preset.video.tower.mean == (0.5, 0.5, 0.5)


def test_two_towers_may_have_statistics_of_their_own(tmp_path):
    size = {"size": {"shortest_edge": 56}, "crop_size": SQUARE}
    own = size | {"image_mean": [0.25] * 3}
    folder = bare("video-llava", tmp_path, **{"": size | {"image_mean": HALF}, "video_": own})
    preset = vlmkit.compose(str(folder))
    assert (preset.tower.mean, preset.video.tower.mean) == ((0.5,) * 3, (0.25,) * 3)


def test_one_tower_has_one_mean(tmp_path):
    """The class of OneVision's video processor means CLIP's statistics, which nobody trained with: a note, no more."""
    size = {"size": {"height": 76, "width": 76}}
    folder = bare("onevision", tmp_path, **{"": size | {"image_mean": HALF, "image_std": HALF},
                                            "video_": size | {"image_mean": CLIP}})
    assert vlmkit.compose(str(folder)).tower.mean == (0.5, 0.5, 0.5)
    assert "video_preprocessor_config.json: image_mean is CLIP's" in folders.described(folder).notes[0]
    edit(folder / "video_preprocessor_config.json", image_mean=[0.4, 0.4, 0.4])
    with pytest.raises(CheckpointFormatError, match=r"video_preprocessor_config.json: image_mean and image_std are"):
        vlmkit.compose(str(folder))


def test_nobody_says_the_mean_of_onevision(tmp_path):
    """What its tower was trained with, not what the class of its processor has (llava-family.md 6, 36)."""
    folder = bare("onevision", tmp_path, **{"": {"size": {"height": 76, "width": 76}}})
    assert assemble(vlmkit.compose(str(folder))).tower.mean == (0.5, 0.5, 0.5)
    edit(folder / "preprocessor_config.json", image_mean=CLIP)
    assert vlmkit.compose(str(folder)).tower.mean == tuple(CLIP)  # who says so, is believed


# words

def read(folder, talk=Talk(("<image>\nWhat is in it?", "A cat.", "Sure?"), (TALL,))):
    """Our ids and transformers'."""
    preset = vlmkit.compose(str(folder))
    found = Processor(preset, assemble(preset), Tokenizer.from_file(folder))(talk.messages)
    return found.ids.tolist(), folders.read("llava", folder, [talk])["input_ids"][0].tolist()


@pytest.fixture
def llava(tmp_path):
    folder = folders.save("llava", tmp_path / "llava", weights=False)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_the_three_places_of_a_template(llava):
    """Of several, the one that transformers takes."""
    edit(llava / "tokenizer_config.json", chat_template=TEMPLATES["chatml"])
    places = ["tokenizer_config.json"]
    (llava / "chat_template.jinja").write_text(TEMPLATES["vicuna"])
    places.append("chat_template.jinja")
    for file, name in (("chat_template.json", "mistral"), ("processor_config.json", "llama3")):
        ours, wanted = read(llava)
        assert ours == wanted
        edit(llava / file, chat_template=TEMPLATES[name])
        places.append(file)
        assert sources(vlmkit.compose(str(llava)))["chat.text"] == (TEMPLATES[name], places[-1])
    ours, wanted = read(llava)
    assert ours == wanted
    assert ours.count(1) == 1  # the template writes <s>, and the tokenizer does not do it again


@pytest.mark.parametrize("form", [
    [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATES["chatml"]}],
    {"default": TEMPLATES["chatml"], "tools": "no"}, TEMPLATES["chatml"]])
def test_a_list_of_templates(form, llava):
    edit(llava / "tokenizer_config.json", chat_template=form)
    assert vlmkit.compose(str(llava)).chat.text == TEMPLATES["chatml"]


def test_templates_without_a_default(llava):
    edit(llava / "tokenizer_config.json", chat_template=[{"name": "tools", "template": "no"}])
    with pytest.raises(CheckpointFormatError, match=r"tokenizer_config.json: chat_template holds tools"):
        vlmkit.compose(str(llava))


def test_no_template_leaves_the_words_of_the_nearest_preset(llava):
    chat = vlmkit.compose(str(llava)).chat
    assert (chat.use, chat.style) == ("turns", "vicuna_v1")


@pytest.mark.parametrize("make", [lambda: tokenizer(True), lambda: tokenizer(False), folders.llama_tokenizer],
                         ids=["bos", "no bos", "llama"])
@pytest.mark.parametrize("template", ["vicuna", "mistral", "llama3", "chatml-old"])
def test_tokenizers(template, make, llava):
    (llava / "tokenizer.json").write_text(make())
    (llava / "chat_template.jinja").write_text(TEMPLATES[template])
    ours, wanted = read(llava)
    assert ours == wanted
    assert ours.count(1) <= 1


# where an answer ends

def test_stops(llava):
    """Of one id, of several, of the language model's, of its type, of the tokenizer's."""
    (llava / "chat_template.jinja").write_text(TEMPLATES["vicuna"])

    def stops():
        found = sources(vlmkit.compose(str(llava)))["chat.stops"]
        return found.value, found.place

    edit(llava / "generation_config.json", eos_token_id=2)
    assert stops() == (["</s>"], "generation_config.json")
    edit(llava / "generation_config.json", eos_token_id=[7, 8, 350])
    assert stops() == (["<|im_end|>", "<|endoftext|>"], "generation_config.json")
    (llava / "generation_config.json").unlink()
    edit(llava / "config.json", text_config__eos_token_id=7)
    assert stops() == (["<|im_end|>"], "config.json")
    edit(llava / "config.json", text_config__eos_token_id=GONE)  # Llama's own is 2
    assert stops() == (["</s>"], "config.json")
    edit(llava / "config.json", text_config__eos_token_id=None)
    assert stops() == (["</s>"], "tokenizer_config.json")
    edit(llava / "tokenizer_config.json", eos_token={"content": "<|im_end|>", "special": True})
    assert stops() == (["<|im_end|>"], "tokenizer_config.json")


def test_vipllava_stops_at_a_string_that_is_no_token(tmp_path):
    folder = folders.save("vip-llava", tmp_path, weights=False)
    edit(folder / "generation_config.json", eos_token_id=2)
    preset = vlmkit.compose(str(folder))
    process = Processor(preset, assemble(preset), Tokenizer.from_file(folder))
    assert (process.stop_ids, process.stop_strings) == ((2,), ("###",))
