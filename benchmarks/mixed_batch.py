"""A batch of unequal prompts, answered by transformers and by vlmkit with the same weights, side by side.

    python benchmarks/mixed_batch.py [--rounds 5] [--new 16]

A LLaVA-NeXT with CLIP-L/14 at 336 pixels, 6 blocks deep, and a Llama decoder of width 512 and 8 layers, random weights,
float32, on the CPU. The batch holds a large picture, a small one, a text, and two pictures in one prompt. Both sides
start from PIL pictures and words and end with token ids; before any timing these are checked to be equal. Times are
wall clock; rounds alternate. transformers pads to the longest prompt; vlmkit lays the prompts end to end.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

import vlmkit
from vlmkit.model.assemble import assemble
from vlmkit.processing.processor import Processor
from vlmkit.processing.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
import small
import theirs

QUESTIONS = [([(480, 640)], "What is this?"), ([(100, 90)], "And this one?"), ([], "Tell me a story."),
             ([(300, 1000), (336, 336)], "Which one is wide?")]


def model_of_theirs():
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768, hidden_act="quick_gelu")
    text = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=small.VOCAB, max_position_embeddings=16384, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
        pad_token_id=5)
    grids = [[336 * rows, 336 * cols] for rows, cols in theirs.GRIDS]
    made = transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=grids, image_token_index=3,
        vision_feature_layer=-2, vision_feature_select_strategy="default")).eval()
    small.scatter(made, 1)
    made.generation_config.eos_token_id = None
    return made


def model_of_ours(state):
    preset = vlmkit.compose("llava-next-vicuna-7b", "tower.options.depth=6", "decoder.width=512", "decoder.layers=8",
                            "decoder.heads=8", "decoder.kv_heads=8", "decoder.head=64", "decoder.ffn=1536",
                            f"decoder.vocab={small.VOCAB}", "decoder.context=16384")
    model = vlmkit.build(preset).eval()
    wanted = model.state_dict()
    model.load_state_dict({name: state[name] for name in wanted})
    return model, Processor(preset, assemble(preset), Tokenizer(small.tokenizer(True)))


def reader_of_theirs():
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=small.Tokenizer.from_str(small.tokenizer(True)), pad_token="<pad>", padding_side="left")
    grids = [[336 * rows, 336 * cols] for rows, cols in theirs.GRIDS]
    return transformers.LlavaNextProcessor(
        theirs.square(LlavaNextImageProcessorPil, 336, image_grid_pinpoints=grids), words, patch_size=14,
        num_additional_image_tokens=1, vision_feature_select_strategy="default")


def main(rounds, new):
    their_model, reader = model_of_theirs(), reader_of_theirs()
    model, processor = model_of_ours(theirs.rename(their_model.state_dict()))
    pictures = [[small.picture(h, w, i) for i, (h, w) in enumerate(sizes)] for sizes, _ in QUESTIONS]
    parts = [[*({"type": "image", "image": p} for p in shown), {"type": "text", "text": q}]
             for shown, (_, q) in zip(pictures, QUESTIONS, strict=True)]
    talks = [[{"role": "user", "content": content}] for content in parts]
    texts = [theirs.prompt("vicuna_v1", ("<image>\n" * len(shown) + q,))
             for shown, (_, q) in zip(pictures, QUESTIONS, strict=True)]

    def transformers_side():
        batch = reader(text=texts, images=[p for shown in pictures for p in shown], padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = their_model.generate(**batch, max_new_tokens=new, do_sample=False)
        return ids[:, batch["input_ids"].shape[1]:].tolist()

    def vlmkit_side():
        found = vlmkit.generate(model, processor, talks, max_new_tokens=new, ignore_eos=True, details=True)
        return [one.ids for one in found]

    assert transformers_side() == vlmkit_side(), "the two sides answer differently"
    times = {transformers_side: [], vlmkit_side: []}
    for _ in range(rounds):
        for side, taken in times.items():
            begun = time.perf_counter()
            side()
            taken.append(time.perf_counter() - begun)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for side, taken in times.items():
        print(f"{side.__name__:<18} median {statistics.median(taken):.2f} s   {min(taken):.2f} to {max(taken):.2f}")
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(f"transformers takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--new", type=int, default=16)
    main(**vars(options.parse_args()))
