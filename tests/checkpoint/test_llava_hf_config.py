"""config.json: what it says, what it leaves out, in every spelling, beside transformers' own configuration classes."""

import json
import resource
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

import vlmkit  # noqa: E402
from vlmkit.errors import CheckpointFormatError, PresetValueError, ShapeError  # noqa: E402
from vlmkit.parts.decoders.rope import frequencies  # noqa: E402

KINDS = ["llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "video_llava"]
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14, "model_type": "clip_vision_model", "projection_dim": 768,
         "vocab_size": 32000}  # fmt: skip


def folder(tmp_path, config, **files):
    """A folder with a configuration and, by name, other JSON files."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, data in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


def composed(tmp_path, config, **files):
    return vlmkit.compose(str(folder(tmp_path, config, **files)))


def agree(preset):
    """Every number of a preset is what transformers' class makes of the same file."""
    told = transformers.AutoConfig.from_pretrained(Path(preset.weights[0].from_))
    text, vision, ours = told.text_config, told.vision_config, preset.decoder
    rope = text.rope_parameters
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert (ours.family, ours.width, ours.layers, ours.heads, ours.kv_heads, ours.head, ours.ffn, ours.vocab) == (
        text.model_type, text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads,
        head, text.intermediate_size, text.vocab_size)
    assert (ours.theta, ours.eps) == (rope["rope_theta"], text.rms_norm_eps)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    assert ours.window == (getattr(text, "sliding_window", None) if slides else None)
    assert ours.tied == (told.tie_word_embeddings or text.tie_word_embeddings)
    assert (ours.bias, ours.norms) == (text.model_type == "qwen2", text.model_type == "qwen3")
    if rope["rope_type"] != "default":
        text.head_dim = head
        waves, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](text, "cpu")
        found = frequencies(ours.head, ours.theta, ours.rope, ours.context, torch.device("cpu"))
        assert torch.equal(found, waves)
    assert (ours.rope.type != "none") == (rope["rope_type"] != "default")

    options = preset.tower.options
    assert (options["img_size"], options["patch_size"], options["embed_dim"], options["depth"], options["num_heads"],
            int(options["embed_dim"] * options["mlp_ratio"])) == (
        vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads,
        vision.intermediate_size)
    assert ("siglip" in preset.tower.model) == (vision.model_type == "siglip_vision_model")
    assert ("quickgelu" in preset.tower.model) == (vision.hidden_act == "quick_gelu")
    assert (options.get("act_layer") == "gelu_tanh") == (vision.hidden_act == "gelu_pytorch_tanh")
    layer = told.vision_feature_layer
    assert preset.tower.layer == (tuple(layer) if isinstance(layer, list | tuple) else layer)
    whole = getattr(told, "vision_feature_select_strategy", "default") == "full"
    assert preset.tower.prefix == ("keep" if whole and vision.model_type == "clip_vision_model" else "drop")
    assert (preset.projector.act, preset.projector.bias, preset.projector.norm) == (
        told.projector_hidden_act, getattr(told, "multimodal_projector_bias", True),
        getattr(told, "projector_layernorm_eps", None))
    if told.model_type.startswith(("llava_next", "llava_onevision")):
        points = [tuple(n // vision.image_size for n in point) for point in told.image_grid_pinpoints]
        assert points == list(preset.image.tiler.choices)
    if ratio := getattr(told, "vision_aspect_ratio", None):
        assert preset.image.packer.budget == int(ratio.removeprefix("anyres_max_"))
    return preset


# what the sections mean by what they leave out

@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said(kind, tmp_path):
    """Without any section: the published model of the class. With empty ones: the defaults of their types."""
    agree(composed(tmp_path, {"model_type": kind, "text_config": None}))


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3"])
def test_sparse_text(text, tmp_path):
    agree(composed(tmp_path, {"model_type": "llava", "text_config": {"model_type": text}}))


@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_sparse_vision(vision, kind, tmp_path):
    config = {"model_type": kind, "text_config": {}, "vision_config": {"model_type": vision},
              "vision_feature_select_strategy": "full", "image_grid_pinpoints": [[224, 448], [448, 224]]}
    agree(composed(tmp_path, config))


@pytest.mark.parametrize("kind", KINDS)
def test_types_are_not_said(kind, tmp_path):
    config = {"model_type": kind, "text_config": {"hidden_size": 1024}, "vision_config": {"image_size": 448},
              "image_grid_pinpoints": [[448, 896], [896, 448]]}
    agree(composed(tmp_path, config))


# spellings of 4.x and of 5.x

TEXTS = {
    "4.x": {"model_type": "mistral", "rope_theta": 1e6, "max_position_embeddings": 32768},
    "5.x": {"model_type": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "theta only inside": {"rope_parameters": {"rope_theta": 5e5}},
    "both": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
             "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "linear of 4.x": {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 5e5},
    "linear of 5.x": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
    "a stray type beside it": {"type": "linear",
                               "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.5}},
    "stray factor and type": {"factor": 2.0, "type": "linear"},
    "a factor without a type": {"rope_scaling": {"factor": 2.0}},
    "null": {"rope_scaling": None, "rope_theta": 1e6},
    "llama3": {"max_position_embeddings": 131072, "rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 4096},
    "window": {"model_type": "mistral", "sliding_window": 1024},
    "no window": {"model_type": "mistral", "sliding_window": None},
    "a window that is off": {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False,
                             "max_window_layers": 28},
    "a window in no layer": {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 28,
                             "num_attention_heads": 28, "num_key_value_heads": 4,
                             "hidden_size": 3584},
    "a window in all": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
    "kinds of layers": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512,
                        "num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2},
    "kinds of 5.x": {"model_type": "qwen3", "sliding_window": None, "use_sliding_window": False, "num_hidden_layers": 2,
                     "layer_types": ["full_attention"] * 2, "max_window_layers": 28},
    "heads": {"hidden_size": 2048, "num_attention_heads": 16, "head_dim": 64, "num_key_value_heads": 4},
    "no kv heads": {"model_type": "qwen2", "num_key_value_heads": None},
    "tied": {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("said", TEXTS.values(), ids=TEXTS)
def test_spellings(said, tmp_path):
    agree(composed(tmp_path, {"model_type": "llava", "text_config": said}))


TOPS = {
    "tied": ("llava_next", {"tie_word_embeddings": True}),
    "layers": ("llava", {"vision_feature_layer": [-2, -5, 3]}),
    "layers of 4.x": ("vipllava", {"vision_feature_layers": [-3, 4]}),
    "layers of 5.x": ("vipllava", {"vision_feature_layer": [-3, 4]}),
    "one layer": ("vipllava", {"vision_feature_layers": -2}),
    "class token": ("llava", {"vision_feature_select_strategy": "full"}),
    "projector": ("llava", {"projector_hidden_act": "relu", "multimodal_projector_bias": False}),
    "a field of others": ("vipllava", {"projector_layernorm_eps": 1e-6}),
    "pinpoints": ("llava_next", {"image_grid_pinpoints": [[336, 1008], [1008, 336]]}),
    "series": ("llava_onevision", {"image_grid_pinpoints": [[384 * r, 384 * c] for r in (1, 2) for c in (1, 2, 3)]}),
    "no series": ("llava_onevision", {"image_grid_pinpoints": [[384 * r, 384 * c] for c in (1, 2) for r in (1, 2)]}),
    "ratio": ("llava_onevision", {"vision_aspect_ratio": "anyres_max_4"}),
    "activation": ("llava", {"vision_config": LARGE | {"hidden_act": "gelu"}}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), TOPS.values(), ids=TOPS)
def test_fields_above(kind, said, tmp_path):
    agree(composed(tmp_path, {"model_type": kind, "text_config": {}} | said))


def test_strays_that_no_class_reads_change_nothing(tmp_path):
    """VipLLaVA's projector has a bias whatever is said; Mistral's attention has none; its layers are all of a kind."""
    more = {"attention_bias": True, "mlp_bias": True, "layer_types": ["full_attention", "sliding_attention"]}
    preset = composed(tmp_path, {"model_type": "vipllava", "multimodal_projector_bias": False,
                                 "text_config": {"model_type": "mistral"} | more})
    assert (preset.projector.bias, preset.decoder.bias, preset.decoder.window) == (True, False, 4096)


# the published files, sparse as they are (llava-family.md 1.4, 1.5, 1.7)

VICUNA = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": 32064}
MISTRAL = {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768, "vocab_size": 32064,
           "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None}
QWEN = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "tie_word_embeddings": True, "vocab_size": 152000, "sliding_window": 32768, "torch_dtype": "bfloat16"}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
          "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False}
PUBLISHED = {
    "llava-1.5-7b": ("llava", VICUNA, LARGE, 7_063_427_072),
    "vip-llava-7b": ("vipllava", VICUNA, LARGE, 7_080_214_528),
    "llava-next-mistral-7b": ("llava_next", MISTRAL, LARGE, 7_566_747_648),
    "llava-next-vicuna-7b": ("llava_next", VICUNA, LARGE, 7_063_431_168),
    "llava-next-video-7b": ("llava_next_video", VICUNA, LARGE, 7_063_431_168),
    "llava-onevision-qwen2-0.5b": ("llava_onevision", QWEN, SIGLIP, 893_675_552),
    "video-llava-7b-hf": ("video_llava", VICUNA, LARGE | {"image_size": 224}, 7_366_279_168),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "vision", "total"), PUBLISHED.values(), ids=PUBLISHED)
def test_published(kind, text, vision, total, tmp_path):
    preset = composed(tmp_path, {"model_type": kind, "text_config": text, "vision_config": vision})
    assert vlmkit.check(agree(preset)).total == total


# what vlmkit's parts do not do is one error that names file and field

WRONG = {
    "text_config.attention_bias": True, "text_config.mlp_bias": True, "text_config.hidden_act": "gelu",
    "text_config.model_type": "gemma", "text_config.partial_rotary_factor": 0.5, "text_config.vocab_size": None,
    "text_config.rope_scaling.rope_type": "yarn", "text_config.rope_scaling.partial_rotary_factor": 0.5,
    "text_config.num_attention_heads": 0, "text_config.num_key_value_heads": 24, "text_config.head_dim": 0,
    "text_config.hidden_size": 4095, "text_config.num_hidden_layers": 10**30, "text_config.rope_theta": 10**400,
    "text_config.intermediate_size": "11008", "text_config.quantization_config": {"bits": 4},
    "text_config.tie_word_embeddings": "yes", "text_config.max_position_embeddings": True,
    "quantization_config": {"quant_method": "bitsandbytes"}, "projector_hidden_act": "tanh",
    "multimodal_projector_bias": "no", "vision_feature_layer": 0, "vision_feature_select_strategy": "cls",
    "vision_config.model_type": "dinov2", "vision_config.hidden_act": "relu", "vision_config.num_channels": 4,
    "vision_config.layer_norm_eps": 1e-6, "vision_config.patch_size": 0, "vision_config.image_size": [336, 336],
    "vision_config.hidden_size": 1000, "vision_config.quantization_config": {"bits": 8},
}  # fmt: skip


def put(config, path, value):
    *inside, key = path.split(".")
    for step in inside:
        config = config.setdefault(step, {})
    config[key] = value


@pytest.mark.parametrize("path", WRONG)
def test_what_is_not_supported(path, tmp_path):
    config = {"model_type": "llava", "text_config": {}, "vision_config": dict(LARGE)}
    put(config, path, WRONG[path])
    refused(tmp_path, config, path)


def refused(tmp_path, config, path):
    with pytest.raises(CheckpointFormatError) as caught:
        composed(tmp_path, config)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {path} ")


@pytest.mark.parametrize(("kind", "field", "value"), [
    ("llava_next", "image_grid_pinpoints", [[336, 500]]), ("llava_next", "image_grid_pinpoints", [[336]]),
    ("llava_next", "image_grid_pinpoints", [336, 672]), ("llava_next", "image_grid_pinpoints", "(1x1),...,(6x6)"),
    ("llava_next_video", "spatial_pool_mode", "adaptive"), ("llava_next_video", "spatial_pool_stride", 0),
    ("llava_onevision", "vision_aspect_ratio", "anyres"), ("llava_onevision", "vision_aspect_ratio", "anyres_max_0"),
    ("vipllava", "vision_feature_layers", [-2, 25]), ("vipllava", "vision_feature_layers", [])])
def test_what_is_not_supported_of_one_class(kind, field, value, tmp_path):
    refused(tmp_path, {"model_type": kind, "text_config": {}, field: value}, field)


def test_a_convolution_makes_the_width_that_the_projector_takes(tmp_path):
    config = {"model_type": "llava_next_video", "text_config": {}, "spatial_pool_mode": "conv"}
    refused(tmp_path, config, "spatial_pool_out_channels")
    refused(tmp_path, config | {"spatial_pool_out_channels": 512}, "spatial_pool_out_channels")
    assert composed(tmp_path, config | {"spatial_pool_out_channels": 1024}).video.packer.pool == "conv"


@pytest.mark.parametrize(("kind", "path", "value"), [
    ("llava", "text_config.num_hidden_layers", 10**7), ("llava", "text_config.vocab_size", 10**8),
    ("llava", "text_config.intermediate_size", 10**8), ("llava", "vision_config.image_size", 10**8),
    ("llava", "vision_config.num_hidden_layers", 10**6), ("llava", "vision_config.intermediate_size", 10**8),
    ("llava_next", "image_grid_pinpoints", [[336 * 10**5, 336 * 10**5]]),
    ("llava_onevision", "image_grid_pinpoints", [[384 * 10**5, 384 * 10**5]]),
    ("llava_next_video", "spatial_pool_stride", 10**8)])
def test_absurd_sizes_are_refused_before_memory_is_taken(kind, path, value, tmp_path):
    """C35. What a part's own limits refuse is told with the file, too."""
    config = {"model_type": kind, "text_config": {}, "vision_config": dict(LARGE)}
    if kind == "llava_onevision":
        del config["vision_config"]
    put(config, path, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointFormatError, PresetValueError, ShapeError), match=r"config\.json|video\.packer"):
        vlmkit.check(composed(tmp_path, config))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("text", ['{"model_type": "llava", "text_config": {"rope_theta": 1e999}}',
                                  '{"model_type": "llava", "text_config": {"rope_theta": NaN}}',
                                  '{"model_type": "llava", "model_type": "llava", "text_config": {}}',
                                  "[" * 100_000, '["llava"]', '{"model_type": "llava"', "", "\xff"])
def test_what_is_no_configuration_is_an_error_of_its_own(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointFormatError, match=r"config\.json"):
        vlmkit.compose(str(tmp_path))
