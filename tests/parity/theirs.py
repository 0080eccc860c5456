"""The small models in transformers: configuration, processors, prompts, and their tensor names in ours."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any, NamedTuple

import small
import torch
import transformers
from tokenizers import Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

GRIDS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
HALF = [0.5, 0.5, 0.5]


def clip_tower(layers: int = 3) -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, image_size=56,
        patch_size=14, projection_dim=16, hidden_act="quick_gelu")


def siglip_tower() -> Any:
    """26 of the published 27 blocks become 3; none is left out."""
    return transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=59, num_hidden_layers=3, num_attention_heads=2, image_size=76, patch_size=14,
        hidden_act="gelu_pytorch_tanh", vision_use_head=False)  # int(16 * 4304 / 1152) = 59


def text(kind: str, theta: float, eps: float = 1e-5, rope: dict[str, Any] | None = None, **more: Any) -> Any:
    made = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig, "qwen2": transformers.Qwen2Config}
    return made[kind](
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=small.VOCAB, max_position_embeddings=4096, rms_norm_eps=eps, bos_token_id=1, eos_token_id=2,
        pad_token_id=5, rope_parameters={"rope_type": "default", "rope_theta": theta} | (rope or {}), **more)


VICUNA = text("llama", 1e4)
QWEN2 = text("qwen2", 1e6, 1e-6)
QWEN15 = text("qwen2", 1e6, 1e-6, tie_word_embeddings=True)
IDS = {"image_token_index": 3, "video_token_index": 4}
CLIP = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vision_config": clip_tower()}
SIGLIP = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "vision_config": siglip_tower()}
NEXT = CLIP | {"image_grid_pinpoints": [[56 * rows, 56 * cols] for rows, cols in GRIDS], "image_token_index": 3}
LLAVA = IDS | CLIP
ONEVISION = IDS | SIGLIP | {"vision_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [
    [76 * rows, 76 * cols] for rows in range(1, 7) for cols in range(1, 7)]}


def configuration(name: str) -> Any:
    """Each its own: a model writes into the sections it was made from."""
    return copy.deepcopy(_configuration(name))


def _configuration(name: str) -> Any:
    match name:
        case "llava" | "llava-crop":
            return transformers.LlavaConfig(text_config=VICUNA, **LLAVA)
        case "bakllava":
            return transformers.LlavaConfig(text_config=text("mistral", 1e4, sliding_window=16), **LLAVA)
        case "interleave":
            return transformers.LlavaConfig(text_config=QWEN15, tie_word_embeddings=True, **IDS | SIGLIP)
        case "vip-llava":
            return transformers.VipLlavaConfig(text_config=VICUNA, vision_config=clip_tower(11), image_token_index=3,
                                               vision_feature_layers=[-2, -5, -8, -11, 6], projector_layernorm_eps=1e-5)
        case "next":
            return transformers.LlavaNextConfig(text_config=VICUNA, **NEXT)
        case "next-mistral":
            return transformers.LlavaNextConfig(text_config=text("mistral", 1e6, sliding_window=None), **NEXT)
        case "next-video":
            stretched = text("llama", 1e4, rope={"rope_type": "linear", "factor": 2.5})
            return transformers.LlavaNextVideoConfig(text_config=stretched, **IDS | NEXT)
        case "onevision":
            return transformers.LlavaOnevisionConfig(text_config=QWEN2, **ONEVISION)
        case "onevision-tied":
            return transformers.LlavaOnevisionConfig(text_config=QWEN15, tie_word_embeddings=True, **ONEVISION)
        case "video-llava":
            return transformers.VideoLlavaConfig(text_config=VICUNA, **LLAVA)
    raise KeyError(name)


CLASSES = {  # the first that the name begins with
    "vip-llava": transformers.VipLlavaForConditionalGeneration,
    "next-video": transformers.LlavaNextVideoForConditionalGeneration,
    "next": transformers.LlavaNextForConditionalGeneration,
    "onevision": transformers.LlavaOnevisionForConditionalGeneration,
    "video-llava": transformers.VideoLlavaForConditionalGeneration,
}


@cache
def model(name: str) -> Any:
    """Their model with random weights. Attention: the tower's as timm computes it, the decoder's written out."""
    made = next((made for key, made in CLASSES.items() if name.startswith(key)),
                transformers.LlavaForConditionalGeneration)
    found = made(configuration(name)).eval()
    found.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    small.scatter(found, 1)
    found.generation_config.eos_token_id = None  # 32 tokens, whatever they are
    return found


def square(kind: type, side: int, **more: Any) -> Any:
    return kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **more)


def squash() -> Any:
    return SiglipImageProcessorPil(size={"height": 76, "width": 76}, image_mean=HALF, image_std=HALF)


class Reader(NamedTuple):
    """What turns prompts, pictures and clips into their model's inputs."""

    processor: Any
    frames: Any  # for the frames of a clip: their video processors only resize by torchvision, which is not PIL's way


@cache
def reader(name: str) -> Reader:
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(small.tokenizer(small.bos(name))), pad_token="<pad>",
        padding_side="left")
    clip = square(CLIPImageProcessorPil, 56)
    given: dict[str, Any] = {"tokenizer": words, "patch_size": 14, "num_additional_image_tokens": 1,
                             "vision_feature_select_strategy": "default"}
    grids = square(LlavaNextImageProcessorPil, 56, image_grid_pinpoints=NEXT["image_grid_pinpoints"])
    match name:
        case "llava" | "vip-llava" | "bakllava":
            pad = square(LlavaImageProcessorPil, 56, do_pad=True)
            return Reader(transformers.LlavaProcessor(image_processor=pad, **given), clip)
        case "llava-crop":
            return Reader(transformers.LlavaProcessor(image_processor=clip, **given), clip)
        case "interleave":
            full = given | {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
            return Reader(transformers.LlavaProcessor(image_processor=squash(), **full), squash())
        case "next" | "next-mistral":
            return Reader(transformers.LlavaNextProcessor(image_processor=grids, **given), clip)
        case "next-video":
            video = square(transformers.LlavaNextVideoVideoProcessor, 56, do_sample_frames=False)
            return Reader(transformers.LlavaNextVideoProcessor(video, grids, **given), clip)
        case "onevision" | "onevision-tied":
            tiles = LlavaOnevisionImageProcessorPil(size={"height": 76, "width": 76}, image_mean=HALF, image_std=HALF,
                                                    image_grid_pinpoints=ONEVISION["image_grid_pinpoints"])
            video = transformers.LlavaOnevisionVideoProcessor(size={"height": 76, "width": 76}, do_sample_frames=False)
            return Reader(transformers.LlavaOnevisionProcessor(
                tiles, words, video, num_image_tokens=25, vision_feature_select_strategy="full"), squash())
        case "video-llava":
            video = square(transformers.VideoLlavaVideoProcessor, 56, do_sample_frames=False)
            return Reader(transformers.VideoLlavaProcessor(
                square(transformers.VideoLlavaImageProcessor, 56), video, **given), clip)
    raise KeyError(name)


def read(name: str, talks: list[small.Talk]) -> dict[str, torch.Tensor]:
    """Conversations as their model takes them: padded on the left."""
    use = reader(name)
    texts = [prompt(small.preset(name).chat.style, talk.turns) for talk in talks]
    images: list[Any] = [image for talk in talks for image in talk.images]
    if name.startswith("onevision"):
        images = [talk.images for talk in talks]  # nested: pictures of one conversation are not tiled
    clips = [frames for talk in talks for frames in talk.clips]
    media: dict[str, Any] = {"images": images if any(talk.images for talk in talks) else None}
    if clips:
        media["videos"] = [torch.stack([_raw(frame) for frame in frames]) for frames in clips]
    made = dict(use.processor(text=texts, padding=True, return_tensors="pt", **media))
    if "pixel_values_images" in made:  # Video-LLaVA's processor still writes the old name
        made["pixel_values"] = made.pop("pixel_values_images")
    if clips:
        cut = [use.frames(frames, return_tensors="pt")["pixel_values"] for frames in clips]
        made["pixel_values_videos"] = torch.stack(cut)
    return made


def _raw(frame: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(*frame.size[::-1], 3).permute(2, 0, 1)


SYSTEM = ("A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the {0}'s questions.")


def prompt(style: str, turns: tuple[str, ...]) -> str:
    """The string of the original repositories (llava-family.md, 4.1); the last turn is a question."""
    asked, answered = turns[::2], (*turns[1::2], "")
    match style:
        case "vicuna_v1":
            before, user, close, reply, after = SYSTEM.format("user") + " ", "USER: ", " ", "ASSISTANT:", "</s>"
        case "llava_v0":
            before, user, close, reply, after = SYSTEM.format("human") + "###", "Human: ", "###", "Assistant:", "###"
        case "mistral_instruct":
            before, user, close, reply, after = "", "[INST] ", " [/INST]", "", " </s>"
        case "qwen_1_5":
            before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            user, close, reply, after = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"
        case "interleave":
            before, user, close, reply, after = ("", "<|im_start|>user ", "<|im_end|>", "<|im_start|>assistant",
                                                 "<|im_end|>")
    gap = "" if reply.endswith("\n") else " "
    return before + "".join(user + ask + close + reply + (gap + said + after if said else "")
                            for ask, said in zip(asked, answered, strict=True))


RULES = [  # llava-family.md, 5.4
    (r"^model\.(vision|image)_tower\.", "tower.vit."),
    (r"^model\.video_tower\.", "video.tower.vit."),
    (r"vit\.(vision_model\.)?embeddings\.patch_embedding", "vit.patch_embed.proj"),
    (r"vit\.(vision_model\.)?embeddings\.class_embedding", "vit.cls_token"),
    (r"vit\.(vision_model\.)?embeddings\.position_embedding\.weight", "vit.pos_embed"),
    (r"vit\.(vision_model\.)?pre_layrnorm", "vit.norm_pre"),
    (r"vit\.(vision_model\.)?post_layernorm", "vit.norm"),
    (r"vit\.(vision_model\.)?encoder\.layers", "vit.blocks"),
    (r"(vit\.blocks\.\d+\.)layer_norm", r"\1norm"),
    (r"(vit\.blocks\.\d+\.)self_attn\.out_proj", r"\1attn.proj"),
    (r"(vit\.blocks\.\d+\.)self_attn\.(.)_proj", r"\1attn.qkv.\2"),
    (r"^model\.multi_modal_projector\.linear_1", "projector.layers.0"),
    (r"^model\.multi_modal_projector\.linear_2", "projector.layers.2"),
    (r"^model\.multi_modal_projector\.projector_layernorm", "projector.norm"),
    (r"^model\.image_newline", "separators.newline"),
    (r"^model\.language_model\.embed_tokens", "decoder.embed"),
    (r"^model\.language_model\.norm", "decoder.norm"),
    (r"^model\.language_model\.layers", "decoder.blocks"),
    (r"input_layernorm", "attn_norm"),
    (r"post_attention_layernorm", "mlp_norm"),
    (r"self_attn\.(.)_proj", r"attn.\1"),
    (r"mlp\.(gate|up|down)_proj", r"mlp.\1"),
    (r"^lm_head", "decoder.head"),
]


def weights(name: str) -> dict[str, torch.Tensor]:
    return rename(model(name).state_dict())


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors under our names. What we do not build is left out: the last block of CLIP, final norms."""
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        for pattern, ours in RULES:
            key = re.sub(pattern, ours, key)
        found[key] = tensor[None] if key.endswith("pos_embed") else tensor
        if key.endswith("cls_token"):
            found[key] = tensor.view(1, 1, -1)
    for key in [key for key in found if ".qkv.q." in key]:
        joined = [found.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        found[key.replace(".q.", ".")] = torch.cat(joined)
    return found
