"""Few bits where they are meant to be, the numbers they stand for, and everything else untouched."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vlmkit
from vlmkit.checkpoint import quantize as module
from vlmkit.checkpoint.load import put
from vlmkit.checkpoint.quantize import FEW, NF4, WAYS, Int8, quantize, quantized
from vlmkit.checkpoint.tensors import headers, read
from vlmkit.errors import PresetError, WeightsError
from vlmkit.model.assemble import assemble
from vlmkit.train.loop import train

MEDIA = Path(__file__).parents[2] / "examples" / "media"
NF4_LEVELS = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
              -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
              0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
              1.0]  # Dettmers et al. 2023, appendix E  # fmt: skip
needs = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
BOTH = ["int8", pytest.param("nf4", marks=needs)]
IN_A_BLOCK = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return vlmkit.load("tiny")


def made(matrix: Tensor, kind: Any, bias: Tensor | None = None) -> Any:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None).to(matrix.dtype)
    layer.weight.data = matrix
    if bias is not None:
        layer.bias.data = bias
    return kind(layer)


def conversations() -> list[Any]:
    asked = json.loads((MEDIA / "questions.json").read_text("utf-8"))
    kinds = [[("video" if name.endswith(".mp4") else "image", str(MEDIA / name)) for name in a["media"]] for a in asked]
    return [[{"role": "user", "content": [*({"type": kind, kind: path} for kind, path in media),
                                          {"type": "text", "text": a["question"]}]}]
            for a, media in zip(asked, kinds, strict=True)]  # fmt: skip


def matrices(model: Any) -> dict[str, Tensor]:
    """The tensors of the layers that are quantized, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.blocks.")
            and any(f".{inner}." in name for inner in IN_A_BLOCK) and not name.endswith(".bias")}  # fmt: skip


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in ours.items())


def test_int8_by_hand() -> None:
    layer = made(torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0], [-0.5, 0.25, 0.1]]), Int8, torch.ones(3))
    assert layer.weight.tolist() == [[127, -63, 1], [0, 0, 0], [-127, 64, 25]]  # 0.25 / 0.5 * 127 = 63.5, to even
    assert layer.scale[:2].tolist() == [[1.0], [0.0]]
    assert layer.scale[2].item() == pytest.approx(0.5 / 127)
    assert layer(torch.tensor([[1.0, 0.0, 2.0]]))[0].tolist() == pytest.approx([130.0, 1.0, 1 - 77 * 0.5 / 127])


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, -4), (torch.bfloat16, -4), (torch.float16, -2)])
def test_int8_is_half_a_step_off_at_most(dtype: torch.dtype, least: int) -> None:
    """For rows of any size whose scale is a normal number of the dtype."""
    sizes = torch.logspace(least, 1, 40)[:, None]
    matrix = (torch.randn(40, 96, generator=torch.manual_seed(0)) * sizes).to(dtype)
    layer = made(matrix, Int8)
    off = (layer.weight.float() * layer.scale.float() - matrix.float()).abs()
    assert (off <= 0.5001 * layer.scale.float()).all()
    assert layer.scale.dtype == dtype
    assert layer.weight.abs().amax(1).ge(126).all()  # every row uses its range, also where the scale was rounded up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, FEW, FEW + 1, 100])
def test_int8_multiplies_what_it_stands_for(dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliced, whole, and by torch's kernel for few tokens of bfloat16."""
    draw = torch.manual_seed(1)
    layer = made(torch.randn(50, 64, generator=draw).to(dtype), Int8, torch.randn(50, generator=draw).to(dtype))
    x = torch.randn(tokens, 64, generator=draw).to(dtype)
    true = F.linear(x.double(), layer.weight.double() * layer.scale.double(), layer.bias.double())
    eps = torch.finfo(dtype).eps
    for size in (module.SLICE, 64 * 7, 1):
        monkeypatch.setattr(module, "SLICE", size)
        torch.testing.assert_close(layer(x).double(), true, rtol=4 * eps, atol=4 * eps * 8)
        assert torch.equal(layer(x[None]), layer(x)[None])


@needs
def test_nf4_keeps_its_own_levels() -> None:
    """Sixteen levels four times over, each row with two scales: what comes back is what went in."""
    row = torch.tensor(NF4_LEVELS).repeat(4)
    matrix = torch.stack([torch.cat([row * 3, row.flip(0) * 0.25]), torch.cat([row * 0.5, row * 7])])
    layer = made(matrix, NF4, torch.tensor([10.0, 20.0]))
    assert layer.weight.shape == (2, 64)
    assert layer.scale.tolist() == [[3.0, 0.25], [0.5, 7.0]]
    torch.testing.assert_close(layer(torch.eye(128)) - layer.bias, matrix.T, rtol=0, atol=2e-6)


@needs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_of_normal_weights(dtype: torch.dtype) -> None:
    """0.09 is what four bits over blocks of 64 normal numbers cost; scales are exact in the weights' dtype."""
    matrix = torch.randn(96, 192, generator=torch.manual_seed(0)).to(dtype)
    layer = made(matrix, NF4)
    back = layer(torch.eye(192, dtype=dtype)).T.float()
    assert ((back - matrix.float()).norm() / matrix.float().norm()).item() == pytest.approx(0.092, abs=0.004)
    assert torch.equal(layer.scale, matrix.view(96, 3, 64).abs().amax(-1))
    assert torch.equal(layer(matrix[None]), layer(matrix)[None])


@pytest.mark.parametrize("how", BOTH)
def test_gradients_pass_through(how: str) -> None:
    layer = made(torch.randn(64, 128, generator=torch.manual_seed(0)), WAYS[how], torch.zeros(64))
    x = torch.randn(3, 128, requires_grad=True)
    layer(x).sum().backward()
    whole = layer(torch.eye(128)).detach()  # [ins, outs]
    torch.testing.assert_close(x.grad, whole.sum(1).expand(3, -1))
    assert layer.bias.grad.tolist() == [3.0] * 64
    assert {name for name, _ in layer.named_parameters()} == {"bias"}  # the matrix does not learn


@pytest.mark.parametrize("how", BOTH)
def test_only_matrices_of_the_blocks_change(tiny: tuple[Any, Any], how: str) -> None:
    model = copy.deepcopy(tiny[0])
    before = dict(model.state_dict())
    assert quantized(model) is None
    assert quantize(model, how) is model
    assert quantized(model) == how
    after = model.state_dict()
    layers = [f"decoder.blocks.{i}.{inner}" for i in range(len(model.decoder.blocks)) for inner in IN_A_BLOCK]
    assert [n for n, part in model.named_modules() if isinstance(part, WAYS[how])] == layers
    assert after.keys() - before.keys() == {f"{layer}.scale" for layer in layers}
    assert before.keys() <= after.keys()
    changed = {f"{layer}.weight" for layer in layers}
    assert all(after[name] is tensor or torch.equal(after[name], tensor)
               for name, tensor in before.items() if name not in changed)  # fmt: skip
    assert {after[name].dtype for name in changed} == {torch.int8 if how == "int8" else torch.uint8}
    for section in ("tower", "projector", "separators", "decoder.embed", "decoder.norm"):
        assert any(name.startswith(f"{section}.") and name in before for name in after)


def test_layers_that_the_decoder_keeps_whole(tiny: tuple[Any, Any]) -> None:
    model = copy.deepcopy(tiny[0])
    model.decoder.unquantized = ("mlp.down", "q")
    quantize(model, "int8")
    for block in model.decoder.blocks:
        kinds = {inner: type(block.get_submodule(inner)) for inner in IN_A_BLOCK}
        assert {inner for inner, kind in kinds.items() if kind is not Int8} == {"mlp.down", "attn.q"}


def test_stacked_matrices_that_stay_whole_are_told(tiny: tuple[Any, Any]) -> None:
    """Experts in one tensor, as mixtures of experts have them, are no linear layers."""
    model = copy.deepcopy(tiny[0])
    model.decoder.blocks[0].experts = torch.nn.Parameter(torch.ones(4, 8, 16))
    with pytest.warns(UserWarning, match=r"512 numbers of the decoder's blocks stay whole: 1 stacks .* 0\.experts"):
        quantize(model, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(copy.deepcopy(tiny[0]), "int8")


def test_nothing_to_quantize() -> None:
    model = assemble(vlmkit.compose("tiny"))
    model.decoder.unquantized = tuple(IN_A_BLOCK)
    with pytest.raises(WeightsError, match=r"hold no nn\.Linear"):
        quantize(model, "int8")


@pytest.mark.parametrize(("how", "dtype", "share"), [
    ("int8", torch.float32, 1 / 4 + 1 / 128),  # the matrices of tiny have rows of 128 and more, a scale for each
    ("int8", torch.bfloat16, 1 / 2 + 1 / 128),
    pytest.param("nf4", torch.float32, 1 / 8 + 1 / 64, marks=needs),
    pytest.param("nf4", torch.bfloat16, 1 / 4 + 1 / 64, marks=needs),
])  # fmt: skip
def test_bytes(tiny: tuple[Any, Any], how: str, dtype: torch.dtype, share: float) -> None:
    model = copy.deepcopy(tiny[0]).to(dtype)
    before = sum(t.nbytes for t in matrices(model).values())
    after = sum(t.nbytes for t in matrices(quantize(model, how)).values())
    assert share - 0.01 < after / before <= share


@pytest.mark.parametrize(("how", "off"), [("int8", 0.01), pytest.param("nf4", 0.15, marks=needs)])
def test_logits(tiny: tuple[Any, Any], how: str, off: float) -> None:
    """Of a trained model: within a hundredth, or a seventh, of their size, measured as a norm."""
    model, processor = tiny
    batch = processor(conversations()[:3])
    with torch.inference_mode():
        before, after = model.logits(model(batch)), (few := quantize(copy.deepcopy(model), how)).logits(few(batch))
    error = ((after - before).norm() / before.norm()).item()
    assert 0 < error < off


def test_answers_of_int8(tiny: tuple[Any, Any]) -> None:
    """What the model is sure of it says again; a guess between two answers may fall the other way."""
    model, processor = tiny
    asked: dict[str, Any] = {"max_new_tokens": 24, "details": True}
    before = vlmkit.generate(model, processor, conversations(), **asked)
    after = vlmkit.generate(quantize(copy.deepcopy(model), "int8"), processor, conversations(), **asked)
    sure = [i for i, answer in enumerate(before) if min(answer.logprobs) > torch.tensor(0.55).log()]
    assert len(sure) >= 4
    assert [after[i].text for i in sure] == [before[i].text for i in sure]


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_one_comes_back_bit_for_bit(tiny: tuple[Any, Any], how: str, dtype: torch.dtype,
                                            tmp_path: Path) -> None:
    model, processor = copy.deepcopy(tiny[0]).to(dtype), tiny[1]
    folder = vlmkit.save(quantize(model, how), processor, tmp_path / "model")
    again = quantize(assemble(processor.preset), how)  # on the meta device: shapes only
    assert all(t.is_meta for t in again.state_dict().values())
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    again.load_state_dict(dict(read(headers(folder))), assign=True, strict=True)
    assert same(model.state_dict(), again.state_dict())
    batch = processor(conversations()[:1])
    with torch.inference_mode():
        assert torch.equal(model(batch), again.eval()(batch))


@pytest.mark.parametrize("how", BOTH)
def test_tensor_by_tensor_while_loading(tiny: tuple[Any, Any], how: str) -> None:
    model, processor = tiny
    empty = quantize(assemble(processor.preset), how)
    modules = dict(empty.named_modules())
    kept = {name: put(modules, name, tensor) for name, tensor in model.state_dict().items()}
    whole = quantize(copy.deepcopy(model), how)
    assert same(whole.state_dict(), empty.state_dict())
    assert kept["decoder.norm.weight"] is empty.decoder.norm.weight
    assert kept["decoder.blocks.0.mlp.up.weight"] is None
    for name, tensor in empty.state_dict().items():  # few bits pass as they are
        put(modules, name, tensor)
    assert same(whole.state_dict(), empty.state_dict())


def test_an_unknown_way() -> None:
    with pytest.raises(PresetError) as caught:
        quantize(assemble(vlmkit.compose("tiny")), "int4")
    assert str(caught.value) == ("quantize: no way to quantize is named 'int4'; there are: int8, nf4; "
                                 "did you mean 'int8'?")  # fmt: skip


def test_twice(tiny: tuple[Any, Any]) -> None:
    model = quantize(copy.deepcopy(tiny[0]), "int8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert same(before, quantize(model, "int8").state_dict())
    with pytest.raises(WeightsError, match="already, as int8, and cannot become nf4"):
        quantize(model, "nf4")


def test_rows_that_nf4_cannot_cut() -> None:
    model = assemble(vlmkit.compose("tiny", "decoder.ffn=100"))
    with pytest.raises(WeightsError) as caught:
        quantize(model, "nf4")
    assert "decoder.blocks.0.mlp.down: rows of 100 weights; nf4 needs a multiple of 64" in str(caught.value)
    assert quantized(model) is None
    assert quantized(quantize(model, "int8")) == "int8"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(WeightsError) as caught:
        quantize(assemble(vlmkit.compose("tiny")), "nf4")
    assert "nf4 needs bitsandbytes" in str(caught.value)
    assert "pip install 'vlmkit[quantize]'" in str(caught.value)


@pytest.mark.parametrize("there", [True, False])
def test_native_code_is_not_fetched_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """The real library asks `kernels` for it while it is imported; so does this one."""
    (tmp_path / "kernels.py").write_text("")
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    import kernels\n    fetched = True\nexcept ImportError:\n    fetched = False\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bitsandbytes", "kernels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    kernels = __import__("kernels") if there else None
    try:
        assert not module._bitsandbytes().fetched
        assert sys.modules.get("kernels") is kernels
    finally:
        sys.modules.pop("bitsandbytes", None)
        sys.modules.pop("kernels", None)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load(tiny: tuple[Any, Any], how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Packed while they are read, saved, loaded: the same bits as packing the whole model."""
    model, processor = vlmkit.load("tiny", dtype=dtype, quantize=how)
    assert same(model.state_dict(), quantize(copy.deepcopy(tiny[0]).to(dtype), how).state_dict())
    folder = vlmkit.save(model, processor, tmp_path / "model")
    for wish in (None, how):
        again, reader = vlmkit.load(folder, quantize=wish)
        assert same(model.state_dict(), again.state_dict())
        assert quantized(again) == how
    asked = conversations()[0]
    assert vlmkit.generate(again, reader, asked) == vlmkit.generate(model, processor, asked)
    twice = vlmkit.save(again, reader, tmp_path / "twice")
    assert {f.name: f.read_bytes() for f in twice.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_load_another_way_than_stored(tmp_path: Path) -> None:
    folder = vlmkit.save(*vlmkit.load("tiny", quantize="int8"), tmp_path / "model")
    with pytest.raises(WeightsError, match="already, as int8, and cannot become nf4"):
        vlmkit.load(folder, quantize="nf4")
    with pytest.raises(PresetError, match="no way to quantize is named 'int4'"):
        vlmkit.load("tiny", quantize="int4")


def test_what_whole_weights_are_needed_for(tmp_path: Path) -> None:
    model, processor = vlmkit.load("tiny", quantize="int8")
    with pytest.raises(WeightsError, match="quantized, as int8; other engines want whole weights"):
        vlmkit.export(model, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run = vlmkit.compose("tiny", "runs/tiny", "train={decoder: 1e-3}")
    with pytest.raises(PresetError, match=r"train\.decoder: the decoder is quantized, as int8"):
        train(model, processor, run, tmp_path / "run")
