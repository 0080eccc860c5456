"""Its maths against transformers' BLIP-2, and what vlmkit expects of a projector."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vlmkit_qformer import qformer

import vlmkit
from vlmkit import registry
from vlmkit.errors import PresetValueError, ShapeError
from vlmkit.types import Batch, Features, Layout, Visual

SMALL = {"queries": 5, "width": 12, "depth": 3, "heads": 3, "ffn": 20}
PRESET = "llava-1.5-7b-qformer"
SHRUNK = (
    *(f"tower.options.{word}" for word in ("img_size=56", "embed_dim=16", "depth=3", "num_heads=2")),  # 4 x 4 patches
    *(f"decoder.{word}" for word in ("width=32", "layers=2", "heads=4", "kv_heads=2", "ffn=48", "vocab=64")),
    *(f"projector.{name}={value}" for name, value in SMALL.items()),
)


def made(width: int = 8, out: int = 6, seed: int = 0, **fields: int) -> qformer.QFormer:
    """A small one, every weight drawn anew: none is zero or one, so a bias or a norm that is left out shows."""
    built = qformer.build(qformer.Config.model_validate(SMALL | fields), width=width, out=out)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            drawn = torch.randn(weight.shape, generator=noise)
            weight.copy_(1 + drawn * 0.2 if name.endswith("norm.weight") else drawn * 0.3)
    return built


def seen(tiles: int = 2, rows: int = 4, cols: int = 6, width: int = 8, prefix: int = 0) -> Features:
    noise = torch.Generator().manual_seed(tiles + prefix)
    return Features(torch.randn(tiles, prefix + rows * cols, width, generator=noise), rows, cols, prefix)


THEIRS = {  # a name of ours, up to its end -> the name in BLIP-2
    "norm": "layernorm",
    "attn.q": "attention.attention.query", "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
    "attn.o": "attention.output.dense", "attn.norm": "attention.output.LayerNorm",
    "look.q": "crossattention.attention.query", "look.k": "crossattention.attention.key",
    "look.v": "crossattention.attention.value", "look.o": "crossattention.output.dense",
    "look.norm": "crossattention.output.LayerNorm",
    "mlp.0": "intermediate_query.dense", "mlp.2": "output_query.dense", "block.norm": "output_query.LayerNorm",
}  # fmt: skip


def their_name(ours: str) -> str:
    """blocks.3.attn.q.weight -> encoder.layer.3.attention.attention.query.weight"""
    words = ours.split(".")
    if words[0] != "blocks":
        return f"{THEIRS[words[0]]}.{words[1]}"
    inside = ".".join(words[2:-1])
    return f"encoder.layer.{words[1]}.{THEIRS['block.norm' if inside == 'norm' else inside]}.{words[-1]}"


def shared(ours: qformer.QFormer) -> list[tuple[str, torch.Tensor]]:
    """What transformers counts to its Q-Former: all but the queries and the way out."""
    return [(name, weight) for name, weight in ours.state_dict().items() if name.startswith(("norm.", "blocks."))]


def blip2(**fields: Any) -> Any:
    """transformers' Q-Former, without dropout."""
    theirs = pytest.importorskip("transformers.models.blip_2.modeling_blip_2")
    config = pytest.importorskip("transformers").Blip2QFormerConfig(**fields)
    return theirs.Blip2QFormerModel(config).eval()


@pytest.mark.parity
@pytest.mark.parametrize("every", [1, 2, 3])
def test_as_transformers(every: int) -> None:
    ours, features = made(every=every), seen(prefix=1)
    theirs = blip2(hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20,
                   encoder_hidden_size=8, cross_attention_frequency=every)  # fmt: skip
    theirs.load_state_dict({their_name(name): weight for name, weight in shared(ours)})  # strict: all, and no more
    with torch.no_grad():
        queries = ours.queries.expand(len(features.tokens), -1, -1)
        read = theirs(query_embeds=queries, encoder_hidden_states=features.tokens).last_hidden_state
        expected = torch.nn.functional.linear(read, ours.out.weight, ours.out.bias)
        torch.testing.assert_close(ours(features).tokens, expected, atol=1e-5, rtol=0)
        assert expected.std() > 0.1


@pytest.mark.parity
def test_the_defaults_are_those_of_blip_2() -> None:
    with torch.device("meta"):
        ours, theirs = qformer.build(qformer.Config(), width=1408, out=2560), blip2()
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {their_name(name): weight.shape for name, weight in shared(ours)} == shapes
    assert tuple(ours.queries.shape) == (32, 768)  # as the paper says, section 3.1


def test_queries_leave_without_a_place() -> None:
    built = made()
    for features in (seen(), seen(rows=3, cols=3, prefix=2), Features(seen().tokens, 0, 0)):
        out = built(features)
        assert (out.tokens.shape, out.rows, out.cols, out.prefix) == ((2, 5, 6), 0, 0, 0)
    with pytest.raises(ShapeError, match="rows and columns"):
        out.map  # noqa: B018


def test_a_tile_for_itself_and_its_tokens_as_a_set() -> None:
    built, features = made(), seen(tiles=3)
    whole = built(features).tokens
    torch.testing.assert_close(built(features._replace(tokens=features.tokens[1:2])).tokens, whole[1:2])
    torch.testing.assert_close(built(features._replace(tokens=features.tokens.flip(1))).tokens, whole)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_fresh_queries_differ() -> None:
    # alike, they would stay alike for ever: nothing else tells them apart
    tokens = qformer.build(qformer.Config.model_validate(SMALL), width=8, out=6)(seen()).tokens
    assert all((one - two).abs().max() > 1e-4 for one, two in pairwise(tokens[0]))


def test_on_meta_as_on_a_device() -> None:
    pack: Any = registry.find("packer", "flat")
    layouts = [Layout("video", 9, 9, frames=2), Layout("image", 9, 9)]

    def lengths(device: str) -> list[int]:
        with torch.device(device):
            project = qformer.build(qformer.Config.model_validate(SMALL), width=8, out=6)
            features = Features(torch.zeros(3, 24, 8), 4, 6)
            return [len(one) for one in pack.build(pack.config(), width=8, out=6)(features, layouts, project, {})]

    assert lengths("meta") == lengths("cpu") == [2 * 5, 5]


def test_every_weight_learns() -> None:
    built = made()
    built(seen()).tokens.square().sum().backward()
    for name, weight in built.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0 or name.endswith("k.bias"), name  # a bias of all keys moves no attention


def test_through_safetensors(tmp_path: Path) -> None:
    one, other = made(seed=1), made(seed=2)
    save_file(one.state_dict(), tmp_path / "qformer.safetensors")
    other.load_state_dict(load_file(tmp_path / "qformer.safetensors"))
    assert torch.equal(one(seen()).tokens, other(seen()).tokens)


def test_the_entry() -> None:
    entry = registry.find("projector", "qformer")
    assert entry.plugin == "qformer"
    assert "BLIP-2" in entry.summary
    config: Any = entry.config(**entry.example)
    assert config.build(width=8, out=6)(seen()).tokens.shape == (2, 4, 6)


def test_the_preset() -> None:
    preset = vlmkit.compose(PRESET)
    assert (preset.needs, preset.weights[0].into) == (("vlmkit-qformer",), ("tower", "decoder"))
    report, base = vlmkit.check(preset), vlmkit.check("llava-1.5-7b")
    assert [report.tokens(height, width) for height, width in ((336, 336), (480, 640), (20, 2000))] == [32] * 3
    differing = {name for name, number in report.parameters.items() if base.parameters[name] != number}
    assert differing == {"projector"}
    # 12 blocks of attention 2,363,904 and MLP 4,723,968 with norms; 6 looks at a tower of 1024: 2,757,120;
    # a norm 1,536, queries 24,576, and the way out to 4096: 3,149,824
    assert report.parameters["projector"] == 12 * 7_087_872 + 6 * 2_757_120 + 1_536 + 24_576 + 3_149_824


@pytest.mark.parametrize("queries", [1, 7])
def test_tokens_are_queries_for_each_tile(queries: int) -> None:
    shallow = ("tower.options.depth=3", "decoder.layers=1")  # quicker to check, and no matter to what is counted
    report = vlmkit.check("llava-next-video-7b", f"projector={{use: qformer, queries: {queries}, depth: 2}}",
                          "image.packer=flat", "video.packer=flat", *shallow)  # fmt: skip
    assert report.tokens(480, 640) == 5 * queries  # LLaVA-NeXT cuts it 2 x 2, after the whole picture
    assert [report.tokens(frames=frames) for frames in (1, 8)] == [queries, 8 * queries]


def test_a_packer_that_wants_a_grid_says_so() -> None:
    with pytest.raises(ShapeError, match="rows and columns"):
        vlmkit.check("llava-next-vicuna-7b", "projector=qformer", "tower.options.depth=3", "decoder.layers=1")


def test_heads_divide() -> None:
    with pytest.raises(PresetValueError, match=r"projector +command line +5 heads do not divide a width of 768"):
        vlmkit.compose(PRESET, "projector.heads=5")


def batch(pixels: torch.Tensor) -> Batch:
    """Three words, a picture, two words."""
    ids, slots = torch.arange(10), torch.arange(3, 8)
    return Batch(ids, torch.tensor([10]), slots, [Visual(pixels, Layout("image", 56, 56))])


def test_a_small_model_answers() -> None:
    model: Any = vlmkit.build(vlmkit.compose(PRESET, *SHRUNK))
    noise = torch.Generator().manual_seed(0)
    one, two = (torch.randint(256, (1, 3, 56, 56), dtype=torch.uint8, generator=noise) for _ in range(2))
    logits = model.logits(model(batch(one)))
    assert logits.shape == (10, 64)
    assert logits.isfinite().all()
    other = model.logits(model(batch(two)))
    assert torch.equal(logits[:3], other[:3])  # words before the picture know nothing of it
    assert not torch.equal(logits[3:], other[3:])
    logits[-1].logsumexp(0).backward()
    assert all(weight.grad is not None for weight in model.projector.parameters())
