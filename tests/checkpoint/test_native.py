"""A folder of ours: what is written comes back, and nothing else is ever written or believed."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import vlmkit
from vlmkit.checkpoint import native, shards
from vlmkit.checkpoint.tensors import NUMBERS
from vlmkit.errors import (
    CheckpointCorruptError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointSafetyError,
    PresetError,
    WeightsError,
)
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

Small = tuple[Any, Processor]
SMALL = ("decoder.layers=1", "decoder.width=32", "decoder.heads=2", "decoder.kv_heads=1", "decoder.ffn=48",
         "tower.options.channels=[8,8,16,8]")  # fmt: skip
SHIPPED = Path(__file__).parents[2] / "presets" / "tiny"
FILES = ["lock.json", "model.safetensors", "preset.yaml", "tokenizer.json"]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in ours.items())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def answer(model: Any, processor: Any) -> Any:
    asked = {"images": [Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 40)], "max_new_tokens": 6, "details": True}
    return vlmkit.generate(model, processor, "What is this?", **asked)


def rewrite(folder: Path, change: Any) -> None:
    """Change tensors and lock them again, as somebody with another model would."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    relock(folder)


def relock(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    lock["files"] = {n: native.digest(folder / n) for n in FILES[1:] if (folder / n).is_file()}
    (folder / "lock.json").write_text(json.dumps(lock))


def test_what_is_saved_comes_back(small: Small, folder: Path) -> None:
    model, processor = small
    assert sorted(p.name for p in folder.iterdir()) == FILES
    again, reader = vlmkit.load(folder)
    assert same(model.state_dict(), again.state_dict())
    assert not again.training
    before, after = answer(model, processor), answer(again, reader)
    assert before == after
    assert len(before.ids) > 0
    own = {"tokenizer": processor.preset.tokenizer, "weights": processor.preset.weights}
    assert reader.preset.model_copy(update=own) == processor.preset
    assert Path(reader.preset.tokenizer.from_) == folder
    assert (folder / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_a_second_save_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = vlmkit.save(*vlmkit.load(folder), tmp_path / "again")
    assert contents(again) == contents(folder)


def test_saved_folders_can_move(small: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(folder, tmp_path / "an other place")
    for source in (tmp_path / "an other place", str(tmp_path / "an other place")):
        assert same(small[0].state_dict(), vlmkit.load(source)[0].state_dict())
    monkeypatch.chdir(tmp_path)
    assert same(small[0].state_dict(), vlmkit.load("an other place")[0].state_dict())
    assert same(small[0].state_dict(), vlmkit.load(vlmkit.compose("./an other place"))[0].state_dict())


SAYS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{# WHY #}"


@pytest.mark.parametrize("given", ["text", "file"])
def test_a_chat_template_comes_along_as_a_file(small: Small, tmp_path: Path, given: str) -> None:
    """One in a file beside its preset, or one longer than a preset may be; the folder moves, and what it was made
    from goes away.
    """
    said = SAYS.replace("WHY", "why " * 20_000)
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.jinja").write_text(said)
    (home / "mine.yaml").write_text("extends: tiny\nchat: {use: template, file: mine.jinja, stops: ['</s>']}\n")
    preset = vlmkit.compose(str(home / "mine.yaml"), *SMALL)
    if given == "text":
        preset = preset.model_copy(update={"chat": preset.chat.model_copy(update={"file": None, "text": said})})
    model, processor = small
    first = Processor(preset, processor.skeleton, processor.tokenizer)
    saved = vlmkit.save(model, first, tmp_path / "m")
    assert (saved / "chat_template.jinja").read_text() == said
    shutil.rmtree(home)
    moved = saved.rename(tmp_path / "moved")
    _, again = vlmkit.load(moved)
    hello = [{"role": "user", "content": "Hello"}]
    assert again([hello]).ids.tolist() == first([hello]).ids.tolist()
    assert again.stop_strings == first.stop_strings == ("</s>",)
    second = vlmkit.save(model, again, tmp_path / "second")
    assert contents(second) == contents(moved)
    (moved / "chat_template.jinja").write_text(said.replace("role", "rule"))
    with pytest.raises(CheckpointCorruptError, match="chat_template"):
        vlmkit.load(moved)


def test_placeholder_strings_survive(small: Small, tmp_path: Path) -> None:
    model, processor = small
    preset = processor.preset.model_copy(
        update={"tokenizer": processor.preset.tokenizer.model_copy(update={"video": "<clip>"})})  # fmt: skip
    vlmkit.save(model, Processor(preset, processor.skeleton, processor.tokenizer), tmp_path / "m")
    assert vlmkit.load(tmp_path / "m")[1].marks == {"image": "<image>", "video": "<clip>"}


def test_a_run_saves_its_model_only(small: Small, tmp_path: Path) -> None:
    model, processor = small
    run = vlmkit.compose(processor.preset, "runs/tiny")
    vlmkit.save(model, Processor(run, processor.skeleton, processor.tokenizer), tmp_path / "m")
    said = yaml.safe_load((tmp_path / "m" / "preset.yaml").read_text())
    assert not said.keys() & {"train", "data", "steps", "seed"}
    assert said["weights"] == [{"from": ".", "format": "native"}]


def test_dtype(small: Small, tmp_path: Path) -> None:
    model, processor = small
    half = vlmkit.build(processor.preset, dtype=torch.bfloat16)
    folder = vlmkit.save(half, processor, tmp_path / "half")
    kinds = {t.dtype for t in vlmkit.load(folder)[0].state_dict().values()}
    assert kinds == {torch.bfloat16, torch.int64}  # batch norms count in integers
    assert same(half.state_dict(), vlmkit.load(folder)[0].state_dict())
    wide = vlmkit.load(folder, dtype=torch.float32)[0].state_dict()
    assert same(wide, {n: t.float() if t.is_floating_point() else t for n, t in half.state_dict().items()})
    full = vlmkit.save(model, processor, tmp_path / "full")
    narrow = vlmkit.load(full, dtype=torch.bfloat16)[0].state_dict()
    assert same(narrow, {n: t.bfloat16() if t.is_floating_point() else t for n, t in model.state_dict().items()})


def test_attention_by_name(folder: Path) -> None:
    attends = {}
    for name in ("eager", "sdpa", "auto"):
        model, _ = vlmkit.load(folder, attention=name)
        attends[name] = type(model.decoder.blocks[0].attn.attend).__module__.rsplit(".", 1)[-1]
    assert attends == {"eager": "eager", "sdpa": "sdpa", "auto": "sdpa"}
    with pytest.raises(vlmkit.PluginError) as caught:
        vlmkit.load(folder, attention="egaer")
    assert "eager" in str(caught.value)


def test_overrides(small: Small, folder: Path) -> None:
    words = ("image.packer={use: flat}", "image.tiler={use: square}", "video.sampler.frames=2")
    model, reader = vlmkit.load(folder, *words)
    assert reader.preset.image.packer.use == "flat"
    assert reader.preset.video.sampler.frames == 2
    assert "separators.newline" in model.state_dict()  # the clips still have one
    with pytest.raises(CheckpointMismatchError) as caught:
        vlmkit.load(folder, "decoder.layers=2")
    assert "missing in decoder:\n    decoder.blocks.1." in str(caught.value)
    with pytest.raises(PresetError):
        vlmkit.load(folder, "decoder.layer=2")


def test_a_tower_with_tables_that_are_not_saved(tmp_path: Path) -> None:
    """EVA keeps rotary tables in buffers that no state dict holds."""
    said = yaml.safe_load((SHIPPED / "preset.yaml").read_text())
    said["tower"] = {"use": "timm", "model": "eva02_tiny_patch14_224", "layer": -1,
                     "options": {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2}}  # fmt: skip
    said["tokenizer"] = {"from": str(SHIPPED)}
    (tmp_path / "eva.yaml").write_text(yaml.safe_dump(said))
    preset = vlmkit.compose(str(tmp_path / "eva.yaml"), "decoder.layers=1", "decoder.width=32", "decoder.heads=2")
    model = vlmkit.build(preset).eval()
    tables = {n: t for n, t in model.named_buffers() if n not in model.state_dict()}
    assert tables
    processor = Processor(preset, assemble(preset), Tokenizer.from_file(SHIPPED))
    again, reader = vlmkit.load(vlmkit.save(model, processor, tmp_path / "m"))
    assert same(model.state_dict(), again.state_dict())
    assert same(tables, {n: t for n, t in again.named_buffers() if n in tables})
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert answer(model, processor) == answer(again, reader)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_other_peoples_files_are_left_alone(small: Small, tmp_path: Path, there: str) -> None:
    place = tmp_path / "thesis"
    if there == "file":
        place.write_text("years of work")
    else:
        place.mkdir()
        (place / "preset.yaml").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(WeightsError, match="nothing was written"):
        vlmkit.save(*small, place)
    assert contents(tmp_path) == before


def test_an_older_checkpoint_is_replaced_whole(small: Small, folder: Path) -> None:
    (folder / "notes.txt").write_text("of the old one")
    processor = small[1]
    other = vlmkit.build(processor.preset, seed=5)
    vlmkit.save(other, processor, folder)
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert same(other.state_dict(), vlmkit.load(folder)[0].state_dict())
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_model_outlives_its_file(small: Small, folder: Path) -> None:
    model, _ = vlmkit.load(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert same(small[0].state_dict(), model.state_dict())


def test_an_empty_folder_and_a_link_are_filled(small: Small, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    vlmkit.save(*small, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == FILES


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "lost"])
def test_damage_is_found(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    if damage == "lost":
        file.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[:-7] if damage == "cut" else data + b"\n")
    wanted = WeightsError if damage == "lost" else CheckpointCorruptError
    with pytest.raises((wanted, PresetError) if name == "preset.yaml" else wanted) as caught:
        vlmkit.load(folder)
    assert name in str(caught.value)


def test_without_verification_a_change_is_taken(folder: Path, small: Small) -> None:
    (folder / "preset.yaml").write_text((folder / "preset.yaml").read_text() + "# mine now\n")
    with pytest.raises(CheckpointCorruptError, match="verify=False"):
        vlmkit.load(folder)
    assert same(small[0].state_dict(), vlmkit.load(folder, verify=False)[0].state_dict())


@pytest.mark.parametrize("text", [
    "", "[]", "{", "null", "\xff", '{"files": 3}', '{"files": {"model.safetensors": 3}}', "[" * 100_000,
    '{"files": {"model.safetensors": {"bytes": 1e999, "sha256": ""}}}', '{"files": {}, "files": {}}', '{"files": {}}',
    '{"files": {"../lock.json": {"bytes": 1, "sha256": ""}}}', '{"versions": "' + "x" * (1 << 20) + '"}',
])  # fmt: skip
def test_a_wrong_lock(folder: Path, text: str) -> None:
    (folder / "lock.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointFormatError, match="lock"):
        vlmkit.load(folder)


def test_a_lock_reaches_nothing_outside(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    (folder.parent / "secret").write_text("s")
    lock["files"]["../secret"] = native.digest(folder.parent / "secret")
    (folder / "lock.json").write_text(json.dumps(lock))
    with pytest.raises(CheckpointSafetyError, match="secret"):
        vlmkit.load(folder)


def test_another_models_weights(folder: Path) -> None:
    """Missing, left over and misshapen are told together, at most ten names of each."""
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if ".bn" in n][:14]:
            del tensors[name]
        tensors |= {f"extra.{i}": torch.zeros(1) for i in range(12)}
        tensors["decoder.norm.weight"] = torch.zeros(33)
        tensors["decoder.blocks.0.mlp.up.weight"] = torch.zeros(48, 32, dtype=torch.int8)

    rewrite(folder, change)
    with pytest.raises(CheckpointMismatchError) as caught:
        vlmkit.load(folder)
    said = str(caught.value)
    assert "14 missing in tower:" in said
    assert "12 left over in extra:" in said
    assert "2 of another shape or kind in decoder:" in said
    assert "decoder.norm.weight is [33] F32, wanted [32] float" in said
    assert "decoder.blocks.0.mlp.up.weight is [48, 32] I8, wanted [48, 32] float" in said
    lines = said.splitlines()
    assert sum(".bn" in line for line in lines) == 10
    assert sum("extra." in line for line in lines) == 10


def test_a_prefix_that_a_wrapper_left_is_told(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [*tensors]:
            tensors[f"module.{name}"] = tensors.pop(name)

    rewrite(folder, change)
    with pytest.raises(CheckpointMismatchError, match=r"known without 'module\.': rename them"):
        vlmkit.load(folder)


def test_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    relock(folder)
    with pytest.raises(CheckpointSafetyError, match=r"torch\.load\(f, 'cpu', weights_only=True"):
        vlmkit.load(folder)


def test_no_checkpoint_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "something").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "something", "something"):
        with pytest.raises(WeightsError, match=r"preset\.yaml"):
            vlmkit.load(source)
    with pytest.raises(WeightsError, match="not in the cache"):
        vlmkit.load(vlmkit.compose("llava-1.5-7b"))


def test_a_preset_goes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llava-1.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="not in the cache"):
        vlmkit.load("llava-1.5-7b")
    with pytest.raises(WeightsError, match=r"neither preset\.yaml with lock\.json"):
        vlmkit.load(Path("llava-1.5-7b"))


def test_shards(small: Small, tmp_path: Path) -> None:
    model, processor = small
    whole = vlmkit.save(model, processor, tmp_path / "whole")
    folder = vlmkit.save(model, processor, tmp_path / "parts", max_shard_size=50_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert [f.name for f in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    parts = {f.name: load_file(f) for f in files}  # as the library reads them
    assert index["weight_map"] == {name: file for file, part in parts.items() for name in part}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    sizes = [sum(t.nbytes for t in parts[f.name].values()) for f in files]
    assert max(size for f, size in zip(files, sizes, strict=True) if len(parts[f.name]) > 1) <= 50_000
    for size, after in zip(sizes, files[1:], strict=False):  # each is as full as the next tensor lets it be
        first = next(name for name in model.state_dict() if name in parts[after.name])
        assert size + model.state_dict()[first].nbytes > 50_000
    assert same({n: t for part in parts.values() for n, t in part.items()}, model.state_dict())
    assert same(vlmkit.load(folder)[0].state_dict(), model.state_dict())
    single = vlmkit.save(*vlmkit.load(folder), tmp_path / "again")
    assert contents(single) == contents(whole)
    vlmkit.save(model, processor, folder)  # in one file again, and no shard stays
    assert sorted(p.name for p in folder.iterdir()) == FILES


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "swapped", "unlocked"])
def test_damage_to_a_shard_is_found(small: Small, tmp_path: Path, damage: str) -> None:
    folder = vlmkit.save(*small, tmp_path / "m", max_shard_size=50_000)
    for file in sorted(folder.glob("*.safetensors*")):
        data = file.read_bytes()
        if damage == "flip":
            file.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        elif damage == "cut":
            file.write_bytes(data[:-1])
        elif damage == "lost":
            file.unlink()
        elif damage == "swapped":
            file.write_bytes(next(p for p in sorted(folder.iterdir()) if p != file).read_bytes())
        else:
            (folder / f"more-{file.name}").write_bytes(data)
        with pytest.raises((CheckpointCorruptError, CheckpointFormatError), match=file.name):
            vlmkit.load(folder)
        file.write_bytes(data)
        (folder / f"more-{file.name}").unlink(missing_ok=True)
    assert same(small[0].state_dict(), vlmkit.load(folder)[0].state_dict())


@pytest.mark.parametrize("size", [50_000, 1 << 30], ids=["shards", "one file"])
def test_tied_weights_are_written_once(small: Small, tmp_path: Path, size: int) -> None:
    """A part may give one weight two names; both are there again after loading."""
    processor = small[1]
    model = vlmkit.build(processor.preset, seed=3)
    first, second = "decoder.blocks.0.mlp.gate.weight", "decoder.blocks.0.mlp.up.weight"
    mlp = model.decoder.blocks[0].mlp
    mlp.up.weight = mlp.gate.weight
    folder = vlmkit.save(model, processor, tmp_path / "m", max_shard_size=size)
    names = [n for f in folder.glob("*.safetensors") for n in load_file(f)]
    assert first in names
    assert second not in names
    assert len(names) == len(model.state_dict()) - 1
    assert same(model.state_dict(), vlmkit.load(folder)[0].state_dict())
    written = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    untied = vlmkit.save(vlmkit.build(processor.preset, seed=3), processor, tmp_path / "untied", max_shard_size=size)
    assert sum(f.stat().st_size for f in untied.glob("*.safetensors")) - written > mlp.up.weight.nbytes


def test_any_tensor_can_be_written(tmp_path: Path) -> None:
    """As the library reads it: any layout in memory, every kind of number, views of one storage."""
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {"base": base, "view": base[1], "turned": base.permute(2, 0, 1), "step": base[..., ::2],
               "one": base[0, 0, 0], "none": base[:0], "expanded": base[0, 0, :1].expand(5), "flag": base > 5,
               "image": base[None].to(memory_format=torch.channels_last)}  # fmt: skip
    tensors |= {name: base.to(dtype, copy=True) for name, dtype in NUMBERS.items() if dtype != torch.bool}
    written = shards.write(tensors, tmp_path, 1 << 30)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].double(), tensor.double())
    assert written == {"model.safetensors": native.digest(tmp_path / "model.safetensors")}


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta")])
def test_what_cannot_be_written(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(WeightsError, match=r"'a\.b' is .* cannot be stored"):
        shards.write({"a.b": tensor}, tmp_path, 1 << 30)
    with pytest.raises(WeightsError, match="cannot be stored"):
        shards.write({"a b": torch.zeros(1)}, tmp_path, 1 << 30)


def test_the_lock_names_packages_of_parts(small: Small, folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["versions"] == {"vlmkit": vlmkit.__version__, "torch": version("torch")}
    assert sorted(lock["files"]) == FILES[1:]
    assert all(entry.keys() == {"bytes", "sha256"} for entry in lock["files"].values())
