"""Every command, run on the preset that is always there."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image, ImageDraw

from vlmkit.cli.main import main
from vlmkit.plugins import make_manager


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((40, 40, 160, 160), fill="red")
    image.save(path := tmp_path / "circle.png")
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with av.open(str(path := tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(24):
            frame = Image.new("RGB", (96, 64), (10 * i, 90, 90))
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_parts(said: Any) -> None:
    rows = said("parts", "--json")
    assert {"kind": "projector", "name": "mlp", "plugin": "vlmkit.projectors",
            "module": "vlmkit.parts.projectors.mlp"}.items() <= next(r for r in rows if r["name"] == "mlp").items()
    assert all(row["summary"] for row in rows)
    text = said("parts", "packer")
    assert "anyres" in text
    assert "mlp" not in text


def test_presets_and_what_shadows_what(said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text("about: Mine.\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    monkeypatch.setenv("VLMKIT_PRESETS", str(tmp_path))
    rows = said("presets", "--json")
    tiny = [row for row in rows if row["name"] == "tiny"]
    assert [(row["about"], row["shadowed"]) for row in tiny] == [("Mine.", False), ("", True)]
    assert next(row for row in rows if row["name"] == "bad")["about"].startswith("cannot be read")
    assert "shadowed" in said("presets")


def test_plugins_and_doctor(said: Any) -> None:
    assert {row["plugin"] for row in said("plugins", "--json")["plugins"]} >= {"vlmkit.towers", "vlmkit.cli"}
    health = said("doctor", "--json")
    assert health["attention"]["sdpa"] == "usable"
    assert re.fullmatch(r"usable, takes (flash|varlen|sdpa)", health["attention"]["auto"])
    if not torch.cuda.is_available():
        assert health["attention"]["varlen"] == "not usable: needs a CUDA device, and this is cpu"
    assert health["cpu"].keys() == {"bfloat16", "float16"}
    assert all(ratio > 0 for one in health["cpu"].values() for ratio in one.values())
    assert health["versions"]["torch"]
    assert health["broken"] == []
    assert "cpu" in said("doctor")
    assert "no plugins installed" in said("doctor")


def test_doctor_lists_installed_plugins(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(entry_points=False)
    manager.accept(object(), "vlmkit-thing", "vlmkit-thing 1.0")
    monkeypatch.setattr("vlmkit.cli.doctor.default", lambda: manager)
    assert re.search(r"^vlmkit-thing +vlmkit-thing 1.0$", said("doctor"), re.M)


def test_show_tells_where_each_value_was_set(said: Any) -> None:
    values = said("show", "tiny", "projector.depth=3", "--json")["values"]
    assert values["projector.depth"] == {"value": 3, "from": "command line"}
    assert values["decoder.family"]["from"].startswith("preset.yaml:")
    assert values["projector.bias"]["from"] == "default"
    text = said("show", "tiny", "projector.depth=3")
    line = next(line for line in text.splitlines() if line.startswith("projector.depth"))
    assert line.split() == ["projector.depth", "3", "command", "line"]
    assert "projector.bias" not in said("show", "tiny", "--set")


def test_check(said: Any) -> None:
    report = said("check", "llava-1.5-7b", "--json")
    assert report["total"] == 7_063_427_072  # the family reference
    assert report["tokens"]["picture 480 x 640"] == 576
    assert report["shapes"][0]["shape"] == "[1, 576, 1024]"
    assert "fits together" in said("check", "llava-1.5-7b")


def test_check_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llava-onevision-qwen2-7b", "projector=resampler"]) == 2
    error = capsys.readouterr().err
    assert "packer" in error
    assert "rows and columns" in error


def test_diff(said: Any) -> None:
    found = said("diff", "llava-1.5-7b", "llava-1.5-7b", "projector=linear", "--json")
    assert found["fields"]["projector.use"] == ["mlp", "linear"]
    assert found["numbers"]["parameters of projector"] == [20_979_712, 4_198_400]  # 1024 -> 4096 (-> 4096), with bias
    assert "tokens: picture 480 x 640" not in found["numbers"]
    assert "same model" in said("diff", "tiny", "tiny")
    assert "projector.use" in said("diff", "llava-1.5-7b", "llava-next-vicuna-7b", "projector=linear")


def test_tokens(said: Any, tmp_path: Path, clip: Path) -> None:
    Image.new("RGB", (1024, 768)).save(a := tmp_path / "a.png")
    Image.new("RGB", (384, 384)).save(b := tmp_path / "b.jpg")
    found = said("tokens", "llava-onevision-qwen2-7b", str(a), str(b), str(clip), "video.sampler.frames=32", "--json")
    # OneVision: worked examples of the reference; the clip has 24 frames of which 32 are picked, some twice
    assert [row["tokens"] for row in found["files"]] == [4725, 1485, 32 * 196 + 1]
    assert found["total"] == 4725 + 1485 + 6273
    together = said("tokens", "llava-onevision-qwen2-7b", str(a), str(b), "--together", "--json")
    assert [row["tokens"] for row in together["files"]] == [730, 730]  # one square tile each, and a newline
    heads, line = said("tokens", "llava-onevision-qwen2-7b", str(a)).splitlines()
    assert heads.split() == ["file", "height", "x", "width", "tokens"]
    assert line.split() == [str(a), "768", "x", "1024", "7", "tiles", "4725"]


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_explain(said: Any, picture: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    assert str(out) in said("explain", "tiny", str(picture), "--out", str(out))
    if name.endswith("png"):
        with Image.open(out) as page:
            assert page.width == 1500
    else:
        text = out.read_text()
        assert text.count("data:image/png;base64,") == 2
        assert "http" not in text


def test_explain_draws_what_was_looked_at(said: Any, picture: Path, tmp_path: Path) -> None:
    said("explain", "tiny", str(picture), "--ask", "What colour is the circle?", "--out", str(tmp_path / "report.html"))
    headings = re.findall("<h2>(.*?)</h2>", (tmp_path / "report.html").read_text())
    assert [re.sub("“.+”", "it", heading) for heading in headings] == ["Tiles", "Tokens", "What it looked at", "Steps"]


def test_explain_says_when_it_cannot_tell(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "tiny", "video.packer.pool=conv", str(clip), "--out", str(tmp_path / "a.html")]
    assert main([*words, "--ask", "What?"]) == 2
    assert "--ask: its packer has weights" in capsys.readouterr().err
    assert main(words) == 0


def test_explain_writes_all_or_nothing(picture: Path, tmp_path: Path) -> None:
    assert main(["explain", "tiny", str(picture), "--out", str(tmp_path / "report.doc")]) == 2
    assert main(["explain", "tiny", str(picture), "--out", str(tmp_path / "no" / "report.html")]) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circle.png"]


def test_generate(said: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "tiny", "What colour is the circle?", "--image", str(picture)]
    answer = said(*words).strip()
    assert "red" in answer.lower()
    assert said(*words, "--stream").strip() == answer
    whole = said(*words, "--json")
    assert (whole["text"].strip(), whole["finish"]) == (answer, "stop")
    assert whole["visual_tokens"] == said("tokens", "tiny", str(picture), "--json")["total"]


def test_chat(said: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"/image {picture}\nWhat colour is the circle?\n/image\n/image nothing.png\nAnd now?\n/new\n/help\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert "red" in said("chat", "tiny").lower()


def test_chat_forgets_what_failed(picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lines = f"/image nothing.png\nWhat is it?\n/image {picture}\nWhat colour is the circle?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert captured.err.count("nothing.png: no such file") == 1


@pytest.mark.parametrize(("words", "said"), [
    (("tiny", "weights=[]"), "no weights are named"),
    (("llava-1.5-7b", "projector=linear"), "llava-hf/llava-1.5-7b-hf"),
])  # fmt: skip
def test_generate_without_weights_says_so(words: tuple[str, ...], said: str, capsys: Any) -> None:
    assert main(["generate", *words, "What?"]) == 3
    assert said in capsys.readouterr().err
