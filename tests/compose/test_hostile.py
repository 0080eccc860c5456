"""P01 to P18: presets written to hurt. Each is one clear error, in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from vlmkit.compose.bind import compose
from vlmkit.errors import OverrideError, PresetError, PresetSafetyError, PresetSyntaxError, PresetValueError
from vlmkit.limits import Limits

GOOD = "extends: llava-1.5-7b\n"
DOUBLING = "\n".join(f'  k{i}: "${{.k{i + 1}}}${{.k{i + 1}}}"' for i in range(60))
LAUGHS = "options: &a0 {x: 1}\n" + "\n".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))

CASES = {
    # name: (text after GOOD, error, words of the message)
    "P01 environment": ("about: ${oc.env:HOME}", PresetSafetyError, ["h.yaml:2", "oc.env", "resolvers"]),
    "P01 environment with default": ("about: ${oc.env:NOPE,x}", PresetSafetyError, ["h.yaml:2"]),
    "P01 in a section of runs": ("data: {file: '${oc.env:HOME}'}", PresetSafetyError, ["h.yaml:2"]),
    "P02 decode": ("about: ${oc.decode:1}", PresetSafetyError, ["refused"]),
    "P02 create": ("tower: ${oc.create:{a: 1}}", PresetError, ["h.yaml:2"]),
    "P02 nested": ("about: ${tower.${about}}", PresetSafetyError, ["nested"]),
    "P02 escaped": ("about: '\\${tower.model}'", PresetSafetyError, ["h.yaml:2"]),
    "P03 python tag": ("about: !!python/object/apply:os.system [id]", PresetSafetyError, ["h.yaml:2", "tag"]),
    "P03 plain tag": ("about: !!str 1", PresetSafetyError, ["tag"]),
    "P03 own tag": ("tower: !tower {model: x}", PresetSafetyError, ["tag"]),
    "P04 target": ("projector: {_target_: os.system}", PresetSafetyError, ["_target_", "`use`"]),
    "P05 circle of one": ("about: ${about}", PresetSafetyError, ["circle", "about"]),
    "P05 circle of two": ("about: ${tower.model}\ntower: {model: '${about}'}", PresetSafetyError, ["circle"]),
    "P05 a section inside itself": ("tower: {options: '${tower}'}", PresetSafetyError, ["circle"]),
    "P06 dangling": ("about: ${tower.modle}", PresetError, ["h.yaml:2", "about", "tower.modle"]),
    "P06 above the top": ("about: ${......x}", PresetError, ["above"]),
    "P07 doubling": ("needs:\n- x\nvideo:\n" + DOUBLING + "\n  k60: lol", PresetSafetyError, ["grow", "preset."]),
    "P08 alias cycle": ("tower: &t {options: *t}", PresetSafetyError, ["*t", "itself"]),
    "P08 laughs": (LAUGHS, PresetSafetyError, ["alias", "preset.max_nodes"]),
    "P08 unknown alias": ("about: *nobody", PresetSyntaxError, ["nobody"]),
    "P09 flow": ("about: " + "[" * 100_000, PresetSafetyError, ["deep", "preset.max_depth"]),
    "P09 flow mappings": ("about: " + "{a: " * 50_000, PresetSafetyError, ["deep"]),
    "P09 block": ("\n".join(" " * i + "a:" for i in range(400)), PresetSafetyError, ["deep"]),
    "P09 block lists": ("about:\n " + "- " * 5_000, PresetSafetyError, ["deep"]),
    "P10 bytes": ("about: " + "x " * 600_000, PresetSafetyError, ["long", "preset.max_bytes"]),
    "P10 one text": ("about: '" + "x" * 70_000 + "'", PresetSafetyError, ["long", "preset.max_scalar"]),
    "P10 values": ("needs: [" + "1," * 21_000 + "]", PresetSafetyError, ["too many values"]),
    "P11 duplicate": ("about: a\nabout: b", PresetSyntaxError, ["h.yaml:3", "twice", "h.yaml:2"]),
    "P11 duplicate inside": ("tower: {model: a, model: b}", PresetSyntaxError, ["'model'"]),
    "P12 second document": ("about: a\n---\nabout: b", PresetSyntaxError, ["h.yaml:3", "second"]),
    "P12 not a mapping": ("---\n- a", PresetError, ["h.yaml"]),
    "P13 unknown section": ("projektor: {depth: 1}", PresetValueError, ["projektor", "'projector'", "h.yaml:2"]),
    "P13 unknown field": ("projector: {dept: 1}", PresetValueError, ["projector.dept", "'depth'"]),
    "P14 text for a number": ("projector: {depth: '2'}", PresetValueError, ["integer", "'2'"]),
    "P14 truth for a number": ("projector: {depth: true}", PresetValueError, ["integer", "true"]),
    "P14 number for truth": ("projector: {bias: 1}", PresetValueError, ["true or false", "1"]),
    "P14 number for text": ("about: 12", PresetValueError, ["text", "12"]),
    "P14 list for a section": ("tower: [1]", PresetValueError, ["tower"]),
    "P15 nan": ("projector: {norm: .nan}", PresetSyntaxError, ["h.yaml:2", "finite"]),
    "P15 infinity": ("projector: {norm: -.inf}", PresetSyntaxError, ["finite"]),
    "P15 too large": ("projector: {norm: 1e999}", PresetSyntaxError, ["finite"]),
    "P15 negative": ("projector: {norm: -0.5}", PresetValueError, ["more than 0"]),
    "P16 no": ("about: no", PresetSyntaxError, ["'no'", "quotes"]),
    "P16 off": ("projector: {bias: off}", PresetSyntaxError, ["'off'", "true or false"]),
    "P16 key": ("on: 1", PresetSyntaxError, ["'on'"]),
    "P16 octal": ("projector: {depth: 010}", PresetSyntaxError, ["'010'"]),
    "P16 base 60": ("about: 12:30:00", PresetSyntaxError, ["12:30:00"]),
    "P16 groups": ("decoder: {vocab: 32_064}", PresetSyntaxError, ["32_064"]),
    "P16 date": ("about: 2024-01-31", PresetSyntaxError, ["2024-01-31"]),
    "P16 hexadecimal": ("decoder: {vocab: 0x10}", PresetSyntaxError, ["0x10"]),
    "P16 merge key": ("tower: {<<: {model: x}}", PresetSyntaxError, ["'<<'"]),
    "not YAML": ("about: [1, 2", PresetSyntaxError, ["h.yaml:2:13", "expected"]),
    "control character": ("about: a\x00b", PresetSyntaxError, ["h.yaml"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_preset_is_one_clear_error(case: str, tmp_path: Path) -> None:
    text, kind, words = CASES[case]
    file = tmp_path / "h.yaml"
    file.write_text(GOOD + text, encoding="utf-8")
    compose("llava-1.5-7b")  # imports are not part of the bounds
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(PresetError) as caught:
        compose(str(file))
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(caught.value, kind), caught.value
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert " at 0x" not in str(caught.value)
    assert len(str(caught.value)) <= 2000
    assert took < 10, f"{took:.1f} s of computing"
    assert peak < 100 << 20
    compose("llava-1.5-7b")


def test_the_environment_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_TEST_SECRET", "hunter2")
    (tmp_path / "a.yaml").write_text(GOOD + "about: '${oc.env:VLMKIT_TEST_SECRET}'")
    with pytest.raises(PresetSafetyError) as caught:
        compose(str(tmp_path / "a.yaml"))
    assert "hunter2" not in str(caught.value)


def chain(folder: Path, length: int) -> str:
    for i in range(length):
        (folder / f"c{i}.yaml").write_text(f"extends: c{i + 1}\n")
    (folder / f"c{length}.yaml").write_text(GOOD)
    return str(folder / "c0.yaml")


def test_p17_inheritance(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "outside.yaml").write_text(GOOD)
    (own / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (own / "a.yaml").write_text("extends: b\n")
    (own / "b.yaml").write_text("extends: a\n")
    outside = str(tmp_path / "outside.yaml")
    for name, said in (("link", "link"), ("../outside", "only names"), (outside, "only names"), ("~/x", "only names"),
                       ("${about}", "only names"), ("b", "itself"), ("x", "itself")):  # fmt: skip
        (own / "x.yaml").write_text(f'extends: "{name}"\n')
        with pytest.raises(PresetSafetyError, match=said):
            compose(str(own / "x.yaml"))
    (own / "x.yaml").write_text("extends: nobody\n")
    with pytest.raises(PresetError, match=r"x.yaml:1: extends 'nobody', which is neither"):
        compose(str(own / "x.yaml"))


def test_p17_user_folders_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "mine.yaml").write_text(GOOD)
    (tmp_path / "x.yaml").write_text("extends: mine\n")
    monkeypatch.setenv("VLMKIT_PRESETS", str(tmp_path / "user"))
    assert compose("mine").projector == compose("llava-1.5-7b").projector
    with pytest.raises(PresetError, match="outside"):
        compose(str(tmp_path / "x.yaml"))


def test_p17_chains(tmp_path: Path) -> None:
    assert compose(chain(tmp_path, 7)).name == "c0"
    with pytest.raises(PresetSafetyError, match=r"levels.*preset.max_extends"):
        compose(chain(tmp_path, 8))
    for i in range(5):
        (tmp_path / f"d{i}.yaml").write_text(GOOD + f"about: {i}")
    (tmp_path / "wide.yaml").write_text("extends: [" + "d0, d1, d2, d3, d4, " * 4 + "]")
    with pytest.raises(PresetSafetyError, match=r"files.*preset.max_files"):
        compose(str(tmp_path / "wide.yaml"))


WORDS = {
    "=": "names joined by dots",
    "projector.=1": "names joined by dots",
    "projector..depth=1": "names joined by dots",
    "pro jector=1": "names joined by dots",
    "weights[-1]=1": "names joined by dots",
    "weights[99999999]=1": "names joined by dots",
    "weights[9999]=1": "the list has 1",
    "needs[0]=x": "the list has 0",
    "projector.depth=": "no value",
    "about=${oc.env:HOME}": "references",
    "about=${tower.model}": "references",
    "about=!!python/name:os.system x": "tag",
    "about=[1, 2": "not YAML",
    "about=no": "quotes",
    "about=1\n---\n2": "second",
    "about=" + "[" * 10_000: "deep",
    "about='" + "x" * 100_000 + "'": "long",
    "tower={_target_: x}": "_target_",
}


@pytest.mark.parametrize("word", WORDS, ids=lambda word: str(word)[:30])
def test_p18_override_grammar(word: str) -> None:
    with pytest.raises(OverrideError, match=WORDS[word]) as caught:
        compose("llava-1.5-7b", word)
    assert len(str(caught.value)) < 600


def test_p18_a_key_once_and_known() -> None:
    with pytest.raises(OverrideError, match="twice"):
        compose("llava-1.5-7b", "projector.depth=1", "projector.depth=2")
    with pytest.raises(PresetValueError, match=r"projector.depht +command line +no such field.*'depth'"):
        compose("llava-1.5-7b", "projector.depht=1")


def test_a_limit_is_changed_from_python(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + "about: '" + "x" * 70_000 + "'")
    with Limits(preset_max_scalar=80_000):
        assert len(compose(str(tmp_path / "a.yaml")).about) == 70_000


def test_only_plain_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("pipe.yaml", "none.yaml", ".", "\0.yaml", "x" * 5000 + ".yaml"):
        with pytest.raises(PresetError, match="no such preset file"):
            compose(str(tmp_path / name))
    (tmp_path / "latin.yaml").write_bytes(b"about: caf\xe9")
    with pytest.raises(PresetSyntaxError, match="UTF-8 at byte 10"):
        compose(str(tmp_path / "latin.yaml"))
