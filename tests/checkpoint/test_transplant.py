"""Models put together from several checkpoints: what fills what, what starts random, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import small
import theirs
from safetensors.torch import load_file, save_file

import vlmkit
from vlmkit.checkpoint.paper import paper
from vlmkit.checkpoint.transplant import compare
from vlmkit.cli.main import main
from vlmkit.errors import CheckpointMismatchError, WeightsError


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LLaVA-1.5 twice, with other weights, and LLaVA-NeXT-Video, whose positions are stretched; half precision once."""
    root = tmp_path_factory.mktemp("donors")
    made = {"one": "llava", "two": "llava", "video": "next-video"}
    for at, (folder, name) in enumerate(made.items()):
        model = theirs.model(name)
        model.save_pretrained(root / folder)
        theirs.reader(name).processor.save_pretrained(root / folder)
        if folder == "two":
            file = root / folder / "model.safetensors"
            noise = torch.Generator().manual_seed(at)
            drawn = {key: torch.randn(t.shape, generator=noise).mul(0.1) for key, t in load_file(file).items()}
            save_file({key: tensor.bfloat16() for key, tensor in drawn.items()}, file, metadata={"format": "pt"})
    return {name: root / name for name in made}


def entries(*rows: tuple[Path, str, str]) -> str:
    said = [{"from": str(folder), "format": kind, "into": into.split()} for folder, kind, into in rows]
    return f"weights={json.dumps(said)}"


def same(model: Any, other: Any, section: str) -> bool:
    mine, their = (getattr(m, section).state_dict() for m in (model, other))
    return mine.keys() == their.keys() and all(torch.equal(mine[key], their[key].to(mine[key].dtype)) for key in mine)


def test_a_projector_from_another_checkpoint(donors: dict[str, Path]) -> None:
    words = entries((donors["one"], "llava-hf", "tower decoder"), (donors["two"], "llava-hf", "projector"))
    model, process = vlmkit.load(donors["one"], words)
    one, two = (vlmkit.load(donors[name], dtype=torch.float32)[0] for name in ("one", "two"))
    assert same(model, one, "tower")
    assert same(model, one, "decoder")
    assert same(model, two, "projector")
    assert not same(model, one, "projector")
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # what most numbers are stored as
    seen = [small.picture(48, 64, 1)]
    said = vlmkit.generate(model, process, "What?", images=seen, max_new_tokens=4, ignore_eos=True, details=True)
    assert (len(said.ids), said.visual_tokens) == (4, 16)


def test_the_comparison_says_what_comes_from_where(donors: dict[str, Path]) -> None:
    words = entries((donors["one"], "llava-hf", "tower"), (donors["two"], "llava-hf", "decoder"))
    plan = paper(donors["one"], words)
    assert plan.rows()[:3] == [
        ("tower", "29", "16,288", "F32", f"{donors['one']} (llava-hf)"),
        ("projector", "4", "1,600", "", "random"),
        ("decoder", "21", "40,096", "BF16", f"{donors['two']} (llava-hf)"),
    ]
    assert plan.rows()[3][::4] == ("never run", "left on disk")
    lines = plan.lines()
    assert lines[0].split() == ["section", "tensors", "numbers", "stored", "as", "from"]
    assert [line.split()[0] for line in lines[1:4]] == ["tower", "projector", "decoder"]
    assert {line.index(" (llava-hf)") >= 0 for line in (lines[1], lines[3])} == {True}


def test_each_tensor_beside_the_one_it_replaces(donors: dict[str, Path]) -> None:
    words = entries((donors["one"], "llava-hf", "tower decoder"), (donors["two"], "llava-hf", "projector"))
    found = {change.name: change for change in compare(paper(donors["one"], words))}
    one, two = (vlmkit.load(donors[name], dtype=torch.float64)[0].projector.state_dict() for name in ("one", "two"))
    assert found.keys() == {f"projector.{name}" for name in one}
    for name, old in one.items():
        change, new = found[f"projector.{name}"], two[name]
        assert change.shape == tuple(old.shape)
        assert (change.norm, change.before) == (pytest.approx(float(new.norm())), pytest.approx(float(old.norm())))
        assert change.cosine == pytest.approx(float((new * old).sum() / new.norm() / old.norm()))
    own = entries((donors["one"], "llava-hf", "tower decoder"), (donors["one"], "llava-hf", "projector"))
    assert all(change.cosine == pytest.approx(1) for change in compare(paper(donors["one"], own)))
    assert compare(paper(donors["one"])) == []


def test_a_section_that_the_first_checkpoint_lacks(donors: dict[str, Path], tmp_path: Path) -> None:
    theirs.model("llava").model.vision_tower.save_pretrained(tmp_path / "clip")
    words = entries((tmp_path / "clip", "clip", "tower"), (donors["one"], "llava-hf", "projector decoder"))
    found = compare(paper(donors["one"], words))
    assert len(found) == 25
    assert {(change.before, change.cosine) for change in found} == {(None, None)}


def test_import_prints_the_comparison(donors: dict[str, Path], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    words = entries((donors["one"], "llava-hf", "tower decoder"), (donors["two"], "llava-hf", "projector"))
    assert main(["import", str(donors["one"]), words, "--out", str(tmp_path / "out")]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    heads = next(row for row in rows if row[0] == "transplanted")
    assert [head.strip() for head in heads if head] == ["transplanted", "shape", "norm", "before", "cosine"]
    assert len([row for row in rows if row[0].startswith("projector.layers.")]) == 4


def test_what_nobody_fills_is_drawn_from_the_seed(donors: dict[str, Path]) -> None:
    words = entries((donors["one"], "llava-hf", "tower decoder"))
    first, again, other = (vlmkit.load(donors["one"], words, seed=seed)[0] for seed in (0, 0, 1))
    assert same(first, again, "projector")
    assert not same(first, other, "projector")
    assert same(first, other, "decoder")
    state = torch.get_rng_state()
    vlmkit.load(donors["one"], words, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_sections_of_other_shapes_are_told_apart(donors: dict[str, Path], tmp_path: Path) -> None:
    """A swapped projector is filled by nobody; one that does not fit is an error in its own section only."""
    words = entries((donors["one"], "llava-hf", "tower decoder"))
    model, _ = vlmkit.load(donors["one"], words, "projector={use: mlp, depth: 3}")
    assert len([name for name, _ in model.projector.named_parameters()]) == 6
    whole = entries((donors["one"], "llava-hf", "tower projector decoder"))
    with pytest.raises(CheckpointMismatchError, match=r"2 missing in projector:\n +projector\.layers\.4\.") as error:
        vlmkit.load(donors["one"], whole, "projector={use: mlp, depth: 3}")
    assert "decoder" not in error.value.what


def test_the_newline_of_another_model(donors: dict[str, Path]) -> None:
    """LLaVA-1.5's decoder under LLaVA-NeXT-Video's eyes: separators are a section, too."""
    words = entries((donors["video"], "llava-hf", "tower projector separators"), (donors["one"], "llava-hf", "decoder"))
    model, _ = vlmkit.load(donors["video"], words)
    one, video = vlmkit.load(donors["one"])[0], vlmkit.load(donors["video"])[0]
    assert torch.equal(model.separators["newline"], video.separators["newline"])
    assert same(model, one, "decoder")
    alone = paper(donors["video"], entries((donors["one"], "llava-hf", "decoder")))
    assert {*alone.random} == {"tower", "projector", "separators"}


def test_only_the_sections_it_fills_take_its_numbers(donors: dict[str, Path]) -> None:
    """A shipped preset learns the tower from one folder and the decoder from another; neither speaks for the other."""
    base = ["llava-1.5-7b", f"tokenizer.from={donors['one']}"]
    plan = paper(*base, entries((donors["one"], "llava-hf", "tower"), (donors["video"], "llava-hf", "decoder")))
    assert plan.preset.decoder.rope.factor == 2.5
    assert plan.preset.tower.options["embed_dim"] == 16
    turned = paper(*base, entries((donors["video"], "llava-hf", "tower"), (donors["one"], "llava-hf", "decoder")))
    assert turned.preset.decoder.rope.type == "none"
    assert plan.preset.image == turned.preset.image == vlmkit.compose("llava-1.5-7b").image


def test_from_a_folder_of_our_own(donors: dict[str, Path], tmp_path: Path) -> None:
    model, process = vlmkit.load(donors["one"])
    with torch.no_grad():
        model.projector.layers[0].weight.fill_(0.5)
    ours = vlmkit.save(model, process, tmp_path / "ours")
    words = entries((donors["one"], "llava-hf", "tower decoder"), (ours, "native", "projector"))
    found, _ = vlmkit.load(donors["one"], words)
    assert same(found, model, "projector")
    plan = paper(donors["one"], words)
    assert plan.rows()[1][4] == f"{ours} (native)"


def test_one_of_several_that_is_not_there(donors: dict[str, Path], tmp_path: Path) -> None:
    words = entries((donors["one"], "llava-hf", "tower decoder"), (tmp_path / "nowhere", "llava-hf", "projector"))
    with pytest.raises(WeightsError, match="nowhere"):
        vlmkit.load(donors["one"], words)
    words = entries((donors["one"], "llava-hf", "tower decoder"), (donors["two"], "llava-hf", "video.tower"))
    with pytest.raises(WeightsError, match=r"fills video\.tower, which this model does not have"):
        vlmkit.load(donors["one"], words)
    theirs.model("llava").model.vision_tower.save_pretrained(tmp_path / "clip")
    words = entries((donors["one"], "llava-hf", "tower decoder"), (tmp_path / "clip", "clip", "projector"))
    with pytest.raises(CheckpointMismatchError, match="4 missing in projector"):
        vlmkit.load(donors["one"], words)
