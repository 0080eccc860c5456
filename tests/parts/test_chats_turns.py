"""Styles against the two-turn strings that the original repositories give when executed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vlmkit.errors import PromptError
from vlmkit.parts.chats.turns import Config, styles
from vlmkit.types import Learned, Said, Seen, Turn

HELPFUL = "gives helpful, detailed, and polite answers to the"
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
          f"{HELPFUL} user's questions.")
HUMAN = VICUNA.replace("user", "human")
VISUAL = ("You are a helpful language and vision assistant. You are able to understand the visual content that the "
          "user provides, and assist the user with a variety of tasks using natural language.")
QWEN = ("<|im_end|>\n<|im_start|>user\n<image>\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n")
DIRECT = QWEN.replace("<|im_end|>\n", "<|im_end|>")
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"

TWO_TURNS = {
    "vicuna_v1": f"{VICUNA} USER: <image>\nq ASSISTANT: a</s>USER: q2 ASSISTANT:",
    "llava_v1": f"{HUMAN} USER: <image>\nq ASSISTANT: a</s>USER: q2 ASSISTANT:",
    "llava_v0": f"{HUMAN}###Human: <image>\nq###Assistant: a###Human: q2###Assistant:",
    "llava_llama_2": f"[INST] <<SYS>>\n{VISUAL}\n<</SYS>>\n\n<image>\nq [/INST] a </s><s>[INST] q2 [/INST]",
    "mistral_instruct": "[INST] <image>\nq [/INST] a </s>[INST] q2 [/INST]",
    "chatml_direct": "<|im_start|>system\nAnswer the questions." + DIRECT,
    "mpt": "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives "
           "helpful and honest answers." + DIRECT,
    "qwen_1_5": "<|im_start|>system\nYou are a helpful assistant." + QWEN,
    "qwen_2_5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant." + QWEN,
    "llava_llama_3": f"{HEAD.format('system')}{VISUAL}<|eot_id|>{HEAD.format('user')}<image>\nq<|eot_id|>"
                     f"{HEAD.format('assistant')}a<|eot_id|>{HEAD.format('user')}q2<|eot_id|>{HEAD.format('assistant')}",
    "gemma_instruct": "<start_of_turn>user\n<image>\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
                      "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\n",
}  # fmt: skip
LEARNED = {"vicuna_v1": "a</s>", "llava_v0": "a###", "llava_llama_2": "a </s>", "mistral_instruct": "a </s>",
           "chatml_direct": "a<|im_end|>", "qwen_1_5": "a<|im_end|>", "llava_llama_3": "a<|eot_id|>"}
TURNS = [Turn("user", [Seen(0), "q"]), Turn("assistant", ["a"]), Turn("user", ["q2"])]


def text(pieces: list) -> str:
    return "".join(f"<{p.kind}>" if isinstance(p, Seen) else p if isinstance(p, str) else p.text for p in pieces)


def render(turns: list[Turn], reply: bool = True, **config: object) -> str:
    return text(Config(**config).build().render(turns, reply))


@pytest.mark.parametrize("style", TWO_TURNS)
def test_two_turns(style: str) -> None:
    assert render(TURNS, style=style) == TWO_TURNS[style]


@pytest.mark.parametrize("style", LEARNED)
def test_answers_and_their_ends_are_learned(style: str) -> None:
    pieces = Config(style=style).build().render(TURNS[:2], reply=False)
    learned = [p for p in pieces if isinstance(p, Learned) or (isinstance(p, Said) and p.learned)]
    assert text(learned) == LEARNED[style]
    assert any(text(learned).strip().endswith(stop) for stop in styles()[style]["stops"])


@pytest.mark.parametrize("style", styles())
def test_every_style_renders_and_marks_what_people_said(style: str) -> None:
    pieces = Config(style=style).build().render(TURNS, reply=True)
    assert [p.index for p in pieces if isinstance(p, Seen)] == [0]
    said = [p.text for p in pieces if isinstance(p, Said)]
    silent = styles()[style].get("silent")
    assert [s for s in said if s != "Received."] == (["a"] if silent else ["q", "a", "q2"])
    assert Config(style=style).build().stops


READY = {  # one picture, one question: section 4.2 of the family reference
    "llava-1.5 as transformers documents it": ({"style": "vicuna_v1", "system": ""}, "USER: <image>\nq ASSISTANT:"),
    "v1.6-mistral": ({"style": "mistral_instruct"}, "[INST] <image>\nq [/INST]"),
    "v1.6-34b": ({"style": "chatml_direct"}, "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n"
                 "<image>\nq<|im_end|><|im_start|>assistant\n"),
    "OneVision without a system turn": ({"style": "qwen_1_5", "system": ""},
                                        "<|im_start|>user\n<image>\nq<|im_end|>\n<|im_start|>assistant\n"),
    "Interleave": ({"style": "interleave"}, "<|im_start|>user <image>\nq<|im_end|><|im_start|>assistant"),
    "VipLLaVA": ({"style": "llava_v0"}, f"{HUMAN}###Human: <image>\nq###Assistant:"),
    "start and end tokens": ({"style": "llava_v0", "visual": ("<im_start>", "<im_end>")},
                             f"{HUMAN}###Human: <im_start><image><im_end>\nq###Assistant:"),
}  # fmt: skip


@pytest.mark.parametrize("name", READY)
def test_ready_prompts(name: str) -> None:
    config, expected = READY[name]
    assert render(TURNS[:1], **config) == expected


def test_captions_are_the_picture_the_caption_and_a_newline() -> None:
    assert render(TURNS[:2], reply=False, style="plain") == "<image>a\n"


def test_pictures_apart() -> None:
    assert render(TURNS[:1], style="v1_mmtag").endswith(
        ". USER: <Image><image></Image> ASSISTANT: Received.</s>USER: q ASSISTANT:")


@pytest.mark.parametrize(("content", "expected"), [
    ([Seen(0), Seen(1), "q"], "<image>\n<image>\nq"),
    (["q", Seen(0)], "q\n<image>"),
    (["left ", Seen(0), " right ", Seen(1)], "left <image> right <image>"),
    ([Seen(0, "video"), "q"], "<video>\nq"),
    (["a", "b"], "ab"),
    ([Seen(0), ""], "<image>"),
    ([Seen(0), "\nq"], "<image>\nq"),
])  # fmt: skip
def test_where_visuals_stand(content: list, expected: str) -> None:
    assert render([Turn("user", content)], style="mistral_instruct") == f"[INST] {expected} [/INST]"


def test_system_turns() -> None:
    turns = [Turn("system", ["Be brief."]), Turn("user", ["q"])]
    assert render(turns, style="vicuna_v1", system="other") == "Be brief. USER: q ASSISTANT:"
    assert render(turns, style="mistral_instruct") == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq [/INST]"
    with pytest.raises(PromptError, match="first"):
        render(turns[::-1], style="vicuna_v1")


def test_an_unknown_style_is_told_with_all_names() -> None:
    with pytest.raises(ValidationError, match="qwen_1_5"):
        Config(style="vicuna")
