"""vlmkit import and export, and what show and doctor say of checkpoints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import theirs  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.checkpoint.export import write  # noqa: E402
from vlmkit.checkpoint.quantize import quantized  # noqa: E402
from vlmkit.checkpoint.tensors import headers, read  # noqa: E402
from vlmkit.cli import compare  # noqa: E402
from vlmkit.cli.main import main  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT-Video that transformers wrote, with a chat template and an end of its own."""
    folder = tmp_path_factory.mktemp("hf") / "video"
    theirs.model("next-video").save_pretrained(folder)
    theirs.reader("next-video").processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
                                                "{{ '<' + p.type + '>' if p.type != 'text' else p.text }}{% endfor %}"
                                                "\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
    return folder


def test_import_and_export(said: Any, stored: Path, tmp_path: Path) -> None:
    told = said("import", str(stored), "--out", str(tmp_path / "ours"))
    lines = told.splitlines()
    assert lines[0] == "video"
    decoder = next(line for line in lines if line.startswith("decoder "))
    assert "F32" in decoder
    assert str(stored) in decoder
    assert not any(line.startswith("never run") for line in lines)  # every tensor is kept
    row = next(line for line in lines if line.startswith("decoder.layers "))
    assert row.split() == ["decoder.layers", "32", "2", "config.json"]
    assert any(line.startswith("chat.text") and "chat_template.jinja" in line for line in lines)
    assert lines[-1] == str(tmp_path / "ours")
    assert vlmkit.compose(str(tmp_path / "ours")).tower.whole

    found = said("export", str(tmp_path / "ours"), "--format", "llava-hf", "--out", str(tmp_path / "back"), "--check",
                 "--json")
    assert [note.partition(":")[0] for note in found["notes"]] == ["chat"]  # <s>, and nothing of the tower
    assert [(r["question"], r["by"], r["good"]) for r in found["check"]] == [
        ("picture", "vlmkit", True), ("clip", "vlmkit", True), ("picture", "transformers", True),
        ("clip", "transformers", True)]
    assert all(r["logits"] <= 1e-5 and r["tokens"][0] == r["tokens"][1] > 20 for r in found["check"])
    one, two = ({k.replace(".vision_model.", "."): v for k, v in read(headers(f))} for f in (stored, tmp_path / "back"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == (stored / "chat_template.jinja").read_text()


def test_import_says_it_as_json(said: Any, stored: Path, tmp_path: Path) -> None:
    told = said("import", str(stored), "tower.whole=false", "--out", str(tmp_path / "ours"), "--json")
    assert told["nearest"] == "llava-next-video-7b"
    assert told["changed"]["decoder.ffn"] == {"shipped": 11008, "here": 48, "file": "config.json"}
    assert any(line.startswith("never run") for line in told["sections"])
    assert Path(told["out"]).is_dir()


def test_import_quantized(said: Any, stored: Path, tmp_path: Path) -> None:
    """In few bits from the start, saved so and loaded so; what is not in the decoder's blocks is as it was."""
    said("import", str(stored), "--quantize", "int8", "--out", str(tmp_path / "small"))
    model, processor = vlmkit.load(tmp_path / "small")
    assert quantized(model) == "int8"
    whole, _ = vlmkit.load(stored)
    assert torch.equal(model.projector.layers[0].weight, whole.projector.layers[0].weight)
    answer = said("generate", str(tmp_path / "small"), "What?", "--max-new-tokens", "3", "--json")
    assert answer["text"] == vlmkit.generate(model, processor, "What?", max_new_tokens=3)


def test_import_takes_a_tower_that_was_cut(said: Any, stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "cut")
    kept = {k: v for k, v in read(headers(stored)) if ".layers.2." not in k and "post_layernorm" not in k}
    save_file(kept, tmp_path / "cut" / "model.safetensors")
    told = said("import", str(tmp_path / "cut"), "--out", str(tmp_path / "ours"))
    assert "never run" not in told
    assert not vlmkit.compose(str(tmp_path / "ours")).tower.whole
    vlmkit.load(tmp_path / "ours")


def test_export_prints_a_table_and_notes(said: Any, stored: Path, tmp_path: Path) -> None:
    text = said("export", str(stored), "--out", str(tmp_path / "out"), "--check")
    assert "2 of 3 blocks" in text
    rows = [line.split("  ") for line in text.splitlines() if line.startswith(("picture", "clip"))]
    assert len(rows) == 4
    assert all(line[-1].strip() == "the same" for line in rows)
    assert text.splitlines()[-1] == str(tmp_path / "out")


def test_export_names_the_part_that_has_no_home(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", "tiny", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "tower.model: ResNet has no home in llava-hf" in said.err
    assert "the nearest that has one" in said.err
    assert said.out == ""
    assert [*tmp_path.iterdir()] == []
    assert main(["export", "tiny", "--out", str(tmp_path / "out"), "--format", "gguf"]) == 7
    assert "llava-hf" in capsys.readouterr().err


def test_check_sees_another_model(stored: Path, tmp_path: Path) -> None:
    model, processor = vlmkit.load(stored)
    asked = compare.questions(model)
    heard = compare.listen(model, processor, asked)
    with torch.no_grad():
        model.decoder.blocks[0].mlp.up.weight.mul_(1.5)
    folder, _ = write(model, processor, tmp_path / "out", "llava-hf")
    rows = compare.compare(folder, asked, heard)
    assert [row.good for row in rows] == [False] * 4
    assert "apart" in compare.line(rows[0])[3]


def test_check_fails_on_the_command_line(capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the last bit may differ, two engines never agree."""
    monkeypatch.setattr(compare, "LIKE", {torch.float32: 0.0})
    assert main(["export", str(stored), "--out", str(tmp_path / "out"), "--check"]) == 3
    assert "does not answer as the model does" in capsys.readouterr().err


def test_show_tells_of_a_folder(said: Any, stored: Path) -> None:
    text = said("show", str(stored))
    assert "its own files change" in text
    assert next(line for line in text.splitlines() if line.startswith("never run")).endswith("left on disk")
    found = said("show", str(stored), "--json")
    assert found["nearest"] == "llava-next-video-7b"
    assert found["changed"]["decoder.heads"]["here"] == 4
    assert "tower.mean" not in found["changed"]  # spelled out there, and what the model's name means here
    assert any(line.startswith("separators") for line in found["weights"])
    assert "its own files change" not in said("show", "llava-1.5-7b")


def test_show_tells_of_weights_that_do_not_load(said: Any, stored: Path) -> None:
    text = said("show", str(stored), "decoder.layers=3")
    assert "its weights do not load" in text
    assert "missing in decoder" in text


def test_doctor_tells_of_checkpoints(said: Any) -> None:
    found = said("doctor", "--json")
    assert "llava-hf" in found["formats"]
    assert found["hub"]["network"].startswith("off")
    text = said("doctor")
    assert "checkpoints" in text
    assert "transformers" in text
