"""Runs where vLLM is installed, and imports nothing of vlmkit: answers the questions of one case. See vllm_same.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
               "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip

import numpy
import vllm
from PIL import Image


def main(case: Path) -> None:
    told = json.loads(case.read_text())
    engine = vllm.LLM(told["folder"], dtype="float32", enforce_eager=True, max_model_len=2048, max_num_seqs=2,
                      max_num_batched_tokens=2048)
    words = engine.get_tokenizer()
    how = vllm.SamplingParams(temperature=0, max_tokens=told["said"], ignore_eos=True,
                              allowed_token_ids=list(range(len(words))))
    answers = [answer(engine, words, how, question) for question in told["questions"]]
    case.with_suffix(".answers.json").write_text(json.dumps(answers))


def answer(engine: Any, words: Any, how: Any, question: dict[str, Any]) -> dict[str, Any]:
    pictures = [Image.open(file).convert("RGB") for file in question["files"]]
    text = {"type": "text", "text": question["text"]}
    if question["clip"]:  # a chat takes clips by address only
        messages = [{"role": "user", "content": [{"type": "video"}, text]}]
        prompt = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        frames = numpy.stack([numpy.array(picture) for picture in pictures])
        out = engine.generate({"prompt": prompt, "multi_modal_data": {"video": [frames]}}, how)
    else:
        shown = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
        out = engine.chat([{"role": "user", "content": [*shown, text]}], how,
                          tokenization_kwargs={"add_special_tokens": True})
    return {"tokens": len(out[0].prompt_token_ids), "ids": list(out[0].outputs[0].token_ids)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
