"""A folder as a whole: values known to be wrong, where each value stands, who wins over whom, and what is never run."""

import json
import os
import random
import sys

import pytest
import torch

pytest.importorskip("transformers")

import folders
import small
import theirs
import yaml
from folders import GONE, edit
from small import Talk, picture

import vlmkit
from vlmkit.checkpoint.paper import paper
from vlmkit.cli.main import main
from vlmkit.compose.bind import sources
from vlmkit.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointSafetyError,
    PresetError,
    VlmkitError,
    WeightsError,
)
from vlmkit.limits import Limits

ONE = Talk(("<image>\nWhat is in it?",), (picture(48, 64, 1),))


@pytest.fixture
def folder(tmp_path):
    """name -> a folder of that model, to be changed."""
    return lambda name: folders.save(name, tmp_path / name)


def slots(process):
    """The ids at the places of one picture."""
    batch = process(ONE.messages)
    return batch.ids[batch.slots].tolist()


# values that are known to be wrong (llava-family.md, 6): mended, and told

@pytest.mark.parametrize("key", ["image_token_index", "image_token_id"])
def test_the_tokenizer_knows_its_ids(key, folder):
    """Number 20: for a while LLaVA-NeXT 34B said 64000 where its tokenizer gave another id."""
    where = folder("llava")
    edit(where / "config.json", image_token_index=GONE)
    edit(where / "config.json", **{key: 9})
    assert paper(where).notes == [f"config.json: {key} is 9, the tokenizer's '<image>' is 3; the tokenizer's is used"]
    assert set(slots(vlmkit.load(where)[1])) == {3}


def test_the_id_of_clips(folder):
    where = folder("next-video")
    edit(where / "config.json", video_token_index=3, image_token_index=4)  # the order one expects; number 24
    assert [note.split(";")[0] for note in paper(where).notes] == [
        "config.json: image_token_index is 4, the tokenizer's '<image>' is 3",
        "config.json: video_token_index is 3, the tokenizer's '<video>' is 4"]


def test_a_tokenizer_without_the_placeholder(folder):
    """Number 21. Pictures keep their places all the same."""
    where = folder("llava")
    words = json.loads(small.tokenizer(True).replace("<image>", "<other>"))
    (where / "tokenizer.json").write_text(json.dumps(words))
    assert paper(where).notes == ["tokenizer.json: has no token '<image>'; the place of each image is kept without one"]
    assert slots(vlmkit.load(where)[1]) == [0] * 16


def test_fields_that_make_the_processor_count_wrongly(folder):
    """Number 2: one token short of each picture."""
    where = folder("llava")
    assert not paper(where).notes
    edit(where / "processor_config.json", num_additional_image_tokens=GONE)
    note, = paper(where).notes
    assert note.startswith("processor_config.json: patch_size, num_additional_image_tokens and")
    assert "make 15 tokens of a tile, the tower makes 16" in note
    assert len(slots(vlmkit.load(where)[1])) == 16


def test_count_of_onevision(folder):
    where = folder("onevision")
    assert not paper(where).notes
    edit(where / "processor_config.json", num_image_tokens=729)
    assert "num_image_tokens and vision_feature_select_strategy make 729 tokens of a tile, the tower makes 25" in \
        paper(where).notes[0]


def test_a_tower_without_a_class_token_loses_no_patch(folder):
    """Number 4."""
    where = folder("interleave")
    assert not paper(where).notes
    edit(where / "config.json", vision_feature_select_strategy="default")
    assert "vision_feature_select_strategy 'default' would drop a patch" in paper(where).notes[0]
    assert len(slots(vlmkit.load(where)[1])) == 25


def test_rows_of_the_embedding_that_are_no_token(folder):
    """Number 22: they are never an answer, however likely."""
    where = folder("llava")
    model, process = vlmkit.load(where)
    with torch.no_grad():
        model.decoder.head.weight[small.WORDS :] = 100 * model.decoder.head.weight[:1].sign()
    answer = vlmkit.generate(model, process, ONE.messages, max_new_tokens=16, ignore_eos=True, details=True)
    assert max(answer.ids) < small.WORDS


# where each value stands

def test_every_value_tells_its_file(folder, capsys):
    where = folders.apart(folder("onevision"))
    edit(where / "generation_config.json", eos_token_id=[7, 8])
    edit(where / "video_preprocessor_config.json", num_frames=4)
    found = {path: source.place for path, source in sources(vlmkit.compose(str(where))).items()}
    assert {found[path] for path in ("decoder.width", "decoder.rope.factor", "tower.options.depth", "tower.layer",
                                     "projector.act", "image.packer.budget")} == {"config.json"}
    assert found["tower.mean"] == "preprocessor_config.json"
    assert found["video.tiler.fit"] == found["video.sampler.frames"] == "video_preprocessor_config.json"
    assert found["chat.text"] == "chat_template.jinja"
    assert found["chat.stops"] == "generation_config.json"
    assert found["chat.eos"] == "tokenizer_config.json"
    assert found["tokenizer.from"] == found["weights[0].from"] == "this folder"
    assert found["video.packer.pool"].startswith("llava-onevision-qwen2-7b.yaml:")  # what no file of a folder says

    assert main(["show", str(where), "tower.layer=-2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert values["tower.layer"] == {"value": -2, "from": "command line"}
    assert values["decoder.width"] == {"value": 32, "from": "config.json"}


def test_commands_take_a_folder(folder, capsys, tmp_path):
    where = str(folder("next"))
    picture(60, 200).save(tmp_path / "wide.png")

    def said(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    theirs_ = sum(weight.numel() for weight in theirs.model("next").parameters())
    assert said("check", where)["total"] == theirs_
    changed = said("diff", "llava-next-vicuna-7b", where)["fields"]
    assert changed["decoder.layers"] == [32, 2]
    assert changed["chat.use"] == ["turns", "template"]
    wanted = theirs.reader("next").processor._get_num_multimodal_tokens([(60, 200)])["num_image_tokens"][0]
    assert said("tokens", where, str(tmp_path / "wide.png"))["files"][0]["tokens"] == wanted


# who wins: words, then files of the user's own, then the folder, then what is shipped

def preset(tmp_path, base, where, into=(), format="llava-hf", **sections):
    """A preset file of the user's."""
    said = {"extends": base, **sections, "tokenizer": {"from": str(where)},
            "weights": [{"from": str(where), "format": format, "into": list(into)}]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(said))
    return str(file)


@pytest.mark.parametrize(("name", "base"), [
    ("llava", "llava-1.5-13b"), ("next-mistral", "llava-next-vicuna-7b"), ("vip-llava", "vip-llava-7b"),
    ("onevision-tied", "llava-onevision-qwen2-7b"), ("video-llava", "video-llava-7b-hf")])
def test_the_folder_wins_over_what_is_shipped(name, base, folder, tmp_path):
    """All numbers: shapes, rope, norms, windows, statistics, and those of a stream's own tower."""
    where = folder(name)
    plan = paper(preset(tmp_path, base, where))
    told = vlmkit.compose(str(where))
    assert (plan.preset.decoder, plan.preset.tower, plan.preset.projector) == (told.decoder, told.tower, told.projector)
    assert sources(plan.preset)["decoder.width"].place == "config.json"
    if name == "video-llava":
        assert plan.preset.video.tower == told.video.tower
    assert plan.preset.chat.use == "turns"  # how the model is used stays the preset's
    wanted = theirs.weights(name)
    for key, tensor in vlmkit.load(preset(tmp_path, base, where))[0].state_dict().items():
        assert torch.equal(tensor, wanted[key])


def test_the_user_wins_over_the_folder(folder, tmp_path):
    where = folder("llava")
    mine = preset(tmp_path, "llava-1.5-7b", where, decoder={"theta": 5e5, "rope": {"type": "linear", "factor": 2.0}},
                  tower={"mean": [0.5, 0.5, 0.5]}, projector={"act": "relu"})
    found = paper(mine, "decoder.context=99", "tower.layer=-1").preset
    assert (found.decoder.theta, found.decoder.context, found.decoder.width) == (5e5, 99, 32)
    assert found.decoder.rope.factor == 2.0
    assert (found.tower.mean, found.tower.layer) == ((0.5, 0.5, 0.5), -1)
    assert found.projector.act == "relu"
    assert sources(found)["decoder.theta"].place.startswith("mine.yaml:")


@pytest.mark.parametrize("name", ["llava-1.5-7b.yaml", "preset.yaml"])
def test_a_file_is_the_users_whatever_it_is_called(name, folder, tmp_path):
    """Also when a shipped one has the same name."""
    where = folder("llava")
    edited = (tmp_path / "mine").joinpath(name)
    edited.parent.mkdir()
    os.replace(preset(tmp_path, "llava-1.5-7b", where, decoder={"theta": 5e5}), edited)
    found = paper(str(edited)).preset
    assert (found.decoder.theta, found.decoder.width) == (5e5, 32)


def test_a_size_that_the_user_names_is_not_bent(folder, tmp_path):
    with pytest.raises(CheckpointMismatchError, match="of another shape or kind in decoder"):
        paper(preset(tmp_path, "llava-1.5-7b", folder("llava"), decoder={"size": "qwen2-0.5b", "family": "llama"}))


def test_a_swapped_part_keeps_its_own_section(folder, tmp_path):
    mine = preset(tmp_path, "llava-1.5-7b", folder("llava"), ["tower", "decoder"],
                  projector={"use": "resampler", "queries": 8})
    plan = paper(mine)
    assert (plan.preset.projector.use, plan.preset.projector.queries) == ("resampler", 8)
    assert plan.random == ["projector"]
    assert len(slots(vlmkit.load(mine)[1])) == 8


def test_only_the_sections_it_fills_are_told_by_a_folder(folder, tmp_path):
    """A decoder from here; the tower stays as shipped, and would start from random weights."""
    found = paper(preset(tmp_path, "llava-1.5-7b", folder("llava"), ["decoder"])).preset
    assert (found.decoder.width, found.tower.options) == (32, {})


@pytest.mark.parametrize("format", ["native", "llava"])
def test_weights_of_another_format_are_one_error(format, folder, tmp_path):
    where = folder("llava")
    with pytest.raises(WeightsError) as caught:
        vlmkit.load(preset(tmp_path, "llava-1.5-7b", where, format=format))
    assert str(caught.value).startswith(f"{where}: ")


# a folder is data

def test_a_folder_of_another_kind_says_so(folder):
    where = folder("llava")
    edit(where / "config.json", model_type="idefics")
    with pytest.raises(PresetError, match="in no layout that vlmkit knows") as caught:
        vlmkit.compose(str(where))
    assert "llava-hf" in caught.value.hint


def test_code_beside_a_configuration_is_neither_read_nor_run(folder, monkeypatch):
    """C32, C34: whatever the folder grants itself."""
    where = folder("llava")
    for file in ("modeling_llava.py", "configuration_llava.py", "processing_llava.py", "__init__.py", "conftest.py"):
        (where / file).write_text("raise SystemExit('run')")
    code = {"AutoModel": "modeling_llava.Model", "AutoConfig": "configuration_llava.Config"}
    edit(where / "config.json", auto_map=code, trust_remote_code=True, custom_pipelines={"x": {"impl": "modeling.X"}},
         text_config__auto_map=code, _name_or_path="/etc/passwd", architectures=["os.system"])
    edit(where / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    edit(where / "processor_config.json", auto_map={"AutoProcessor": "processing_llava.P"},
         image_processor__auto_map={"AutoImageProcessor": "image_processing.P"})
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    vlmkit.load(where)
    assert any(name.endswith("config.json") for name in opened)
    assert not [name for name in opened if name.endswith(".py") and str(where) in name]
    assert "/etc/passwd" not in opened


def test_whatever_stands_in_a_field(tmp_path):
    """A preset, or an error of ours. The draw is the same each time."""
    where = folders.apart(folders.save("next-video", tmp_path, weights=False))
    draw = random.Random(0)
    odd = [None, True, -1, 0, 10**30, 1.5, "x", [], [[]], {}, {"default": 1}, [{"name": []}], "\ud800"]
    files = [file for file in sorted(where.glob("*.json")) if file.name != "tokenizer.json"]
    kept = refused = 0
    for _ in range(150):
        file = draw.choice(files)
        text = file.read_text()
        tree = node = json.loads(text)
        key = draw.choice(list(tree))
        while isinstance(node[key], dict) and node[key] and draw.random() < 0.8:
            node = node[key]
            key = draw.choice(list(node))
        node[key] = draw.choice(odd)
        file.write_text(json.dumps(tree))
        try:
            vlmkit.compose(str(where))
            kept += 1
        except VlmkitError:
            refused += 1
        file.write_text(text)
    assert min(kept, refused) > 20


@pytest.mark.parametrize("file", ["config.json", "chat_template.jinja", "generation_config.json"])
def test_links_that_leave_the_folder_are_not_followed(file, folder, tmp_path):
    where = folder("llava")
    (tmp_path / "outside").write_text((where / file).read_text())
    (where / file).unlink()
    (where / file).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointSafetyError, match=f"{file}: is a link that leaves its folder"):
        vlmkit.compose(str(where))


def test_the_links_of_a_hubs_cache_are_followed(folder, tmp_path):
    home = tmp_path / "models--a--b"
    blobs, snapshot = home / "blobs", home / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for at, file in enumerate(sorted(folder("llava").iterdir())):
        file.rename(blobs / str(at))
        (snapshot / file.name).symlink_to(f"../../blobs/{at}")
    model, process = vlmkit.load(snapshot)
    assert (model.decoder.width, process.preset.name) == (32, "b")


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json",
                                  "generation_config.json"])
def test_a_configuration_too_large(file, folder):
    where = folder("llava")
    with Limits(ckpt_max_config_bytes=10), pytest.raises(CheckpointFormatError, match=r"ckpt\.max_config_bytes"):
        vlmkit.compose(str(where))
    edit(where / file, more=["x" * 2**20])
    with pytest.raises(CheckpointFormatError, match=f"{file}: too large"):
        vlmkit.compose(str(where))
