"""Merged tree -> typed preset: every problem at once, with its place; nested parts; saving; sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from vlmkit import registry
from vlmkit.compose.bind import compose, sources
from vlmkit.contracts import PartConfig, PartOf
from vlmkit.errors import PresetValueError


class Fused(PartConfig):
    """Several towers on the same pixels."""

    towers: tuple[Annotated[PartConfig, PartOf("tower")], ...] = Field(min_length=1)
    join: Literal["channel", "token"] = "channel"
    spare: Annotated[PartConfig, PartOf("tower")] | None = None


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    rate: float = Field(0.1, ge=0)
    name: str | int = "x"


class Odd(PartConfig):
    """Unions, nested sections, mappings."""

    inner: Inner = Inner()
    either: int | tuple[int, ...] = 1
    free: dict[str, int] = Field(default_factory=dict)
    pair: tuple[int, int] = (1, 2)


@pytest.fixture(autouse=True)
def parts() -> Iterator[None]:
    registry.add("tower", "fused-test", Fused, lambda config: list(config.towers))
    registry.add("projector", "odd-test", Odd, lambda config, width, out: None)
    yield
    registry._added.clear()


def problems(*words: str, name: str = "llava-1.5-7b") -> dict[str, tuple[str, str]]:
    with pytest.raises(PresetValueError) as caught:
        compose(name, *words)
    return {p.path: (p.place, p.what) for p in caught.value.problems}


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(
        "extends: llava-next-video-7b\n"
        "needs: [vlmkit-tome]\n"
        "projector:\n"
        "  depth: two\n"
        "video:\n"
        "  packer:\n"
        "    strid: 3\n"
        "    pool: averag\n"
    )
    with pytest.raises(PresetValueError) as caught:
        compose(str(tmp_path / "deep.yaml"), "decoder.use=tranformer")
    assert str(caught.value).splitlines() == [
        "preset deep: 5 problems",
        "  needs[0]            deep.yaml:2   plugin vlmkit-tome is not installed",
        "  projector.depth     deep.yaml:4   expected an integer, got 'two'",
        "  decoder.use         command line  no decoder named 'tranformer'; there are: transformer; did you mean"
        " 'transformer'?; plugin vlmkit-tome is not installed",
        "  video.packer.strid  deep.yaml:7   no such field; frames has: pool, stride, when, newline; did you mean"
        " 'stride'?",
        "  video.packer.pool   deep.yaml:8   expected 'average', 'max', 'conv', 'bilinear' or 'none', got 'averag';"
        " did you mean 'average'?",
    ]
    assert [p.path for p in caught.value.problems][1] == "projector.depth"


def test_nested_parts() -> None:
    inner = "{use: fused-test, towers: [{use: timm, model: bb}]}"
    word = f"tower={{use: fused-test, towers: [{{use: timm, model: aa}}, {inner}]}}"
    tower: Any = compose("llava-1.5-7b", word).tower
    assert (tower.towers[0].model, tower.towers[1].towers[0].model) == ("aa", "bb")
    assert tower.build()[0].model == "aa"
    towers = "[{use: timm, modl: aa}, {use: tim}, {layer: 1}]"
    found = problems(f"tower={{use: fused-test, towers: {towers}, spare: 3, join: x}}")
    assert set(found) == {"tower.towers[0].modl", "tower.towers[0].model", "tower.towers[1].use", "tower.towers[2].use",
                          "tower.spare", "tower.join"}  # fmt: skip
    assert "did you mean 'model'" in found["tower.towers[0].modl"][1]
    assert "there are: fused-test, temporal, timm" in found["tower.towers[2].use"][1]
    assert found["tower.spare"] == ("command line", "expected a tower, got 3")
    assert "at least 1 items" in problems("tower={use: fused-test, towers: []}")["tower.towers"][1]
    assert "is missing" in problems("tower={use: fused-test}")["tower.towers"][1]


@pytest.mark.parametrize(("word", "path", "said"), [
    ("either=x", "projector.either", "expected an integer or a list, got 'x'"),
    ("either=[1, x]", "projector.either[1]", "expected an integer, got 'x'"),
    ("either=null", "projector.either", "expected an integer or a list, got null"),
    ("inner.rate=-1", "projector.inner.rate", "expected at least 0, got -1"),
    ("inner.rate=fast", "projector.inner.rate", "expected a number, got 'fast'"),
    ("inner.rats=1", "projector.inner.rats", "no such field; inner has: rate, name; did you mean 'rate'?"),
    ("inner=[1]", "projector.inner[0]", "expected a section of fields, got 1"),
    ("free={a: b}", "projector.free.a", "expected an integer, got 'b'"),
    ("pair=[1]", "projector.pair[1]", "is missing"),
    ("pair=[1, 2, 3]", "projector.pair", "expected at most 2 items, got [1, 2, 3]"),
])  # fmt: skip
def test_each_mistake_has_one_path_and_one_sentence(word: str, path: str, said: str) -> None:
    found = problems("projector={use: odd-test}", f"projector.{word}")
    assert found == {path: ("command line", said)}


def test_lists_are_tuples_but_text_is_no_number() -> None:
    preset: Any = compose("llava-1.5-7b", "projector={use: odd-test, either: [1, 2], pair: [3, 4], inner: {rate: 1}}")
    assert preset.projector == Odd(use="odd-test", either=(1, 2), pair=(3, 4), inner=Inner(rate=1.0))


def test_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("about: nothing\nimage: {packer: flat}\nvideo: {packer: {newline: end}}\n")
    found = problems(name=str(tmp_path / "bare.yaml"))
    assert {path for path, (_, said) in found.items() if said.startswith("is missing")} == {
        "tower", "projector", "decoder", "chat", "image.tiler", "video.tiler", "video.sampler"}  # fmt: skip
    assert found["video.packer.use"][1].startswith("names no part; add `use`; there are: anyres, flat")
    assert "image" in problems("image=null")["preset"][1]


def test_a_section_or_a_field_may_be_null() -> None:
    assert compose("llava-next-video-7b", "video=null").video is None
    preset: Any = compose("llava-onevision-qwen2-7b", "image.packer.budget=null")
    assert preset.image.packer.budget is None


def test_a_second_preset_lies_over_the_first(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("about: wider\nprojector: {use: resampler, queries: 16}\n")
    preset: Any = compose("llava-1.5-7b", str(tmp_path / "wide.yaml"), "projector.depth=3")
    assert (preset.name, preset.about) == ("llava-1.5-7b", "wider")
    assert (preset.projector.queries, preset.projector.depth) == (16, 3)


def test_a_bound_preset_takes_more_words() -> None:
    preset = compose("llava-1.5-7b", "projector.depth=3")
    more = compose(preset, "decoder.layers=2")
    assert more == compose("llava-1.5-7b", "projector.depth=3", "decoder.layers=2")
    changed = preset.model_copy(update={"about": "changed in Python"})
    assert compose(changed, "projector.act=silu").about == "changed in Python"


def test_saved_whole_and_read_back(tmp_path: Path) -> None:
    whole = compose("video-llava-7b-hf", "projector.depth=3")
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(whole.dump(), sort_keys=False))
    again = compose(str(tmp_path))
    assert again == whole
    assert again.name == "video-llava-7b-hf"


def test_sources() -> None:
    found = sources(compose("llava-next-video-7b", "projector.act=silu", "image.packer=flat"))
    assert found["projector.act"] == ("silu", "command line")
    assert found["projector.bias"] == (True, "default")
    assert found["image.packer.use"] == ("flat", "command line")
    assert found["tower.model"][1].startswith("llava-1.5-7b.yaml:")
    assert found["video.packer.pool"][1].startswith("llava-next-video-7b.yaml:")
    assert found["weights[0].from"] == ("llava-hf/LLaVA-NeXT-Video-7B-hf", found["weights[0].from"].place)
    model = sources(compose("video-llava-7b-hf"))["video.tower.model"]
    assert model.value == "vit_large_patch14_clip_quickgelu_224.openai"
    assert model.place.startswith("video-llava-7b-hf.yaml:")


def test_two_presets_are_equal_wherever_their_values_stood(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: llava-1.5-7b\nname: same\n")
    (tmp_path / "b.yaml").write_text("# a comment\n\nextends: llava-1.5-7b\nname: same\n")
    assert compose(str(tmp_path / "a.yaml")) == compose(str(tmp_path / "b.yaml"))
    assert compose(str(tmp_path / "a.yaml")) != compose(str(tmp_path / "b.yaml"), "decoder.layers=1")
