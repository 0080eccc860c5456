"""Take a model to transformers and vLLM, and bring it back. About three seconds, no download."""

import warnings

import torch
from PIL import Image

import vlmkit

# What tiny sees with has no home in llava-hf: transformers' LLaVA takes CLIP's and SigLIP's towers.
model, processor = vlmkit.load("tiny")
try:
    vlmkit.export(model, processor, "out")
except vlmkit.PresetError as error:
    print(error)

# A small SigLIP instead. Its weights and the projector's are random here; the decoder is tiny's.
siglip = ("tower.model=vit_base_patch16_siglip_224", "tower.side=null", "tower.layer=-1",
          "tower.options={img_size: 64, embed_dim: 64, depth: 2, num_heads: 2, act_layer: gelu_tanh, global_pool: '', "
          "channels: null, layers: null, stem_width: null}", "weights[0].into=[decoder, separators]")
model, processor = vlmkit.load("tiny", *siglip)
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    folder = vlmkit.export(model, processor, "out", format="llava-hf")
for note in notes:
    print("note:", note.message)
print(*sorted(file.name for file in folder.iterdir()))

# The folder is one that transformers writes; vlmkit reads those, too.
again, reader = vlmkit.load(folder)
question = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (100, 70), "red")},
                                         {"type": "text", "text": "What is it?"}]}]
with torch.inference_mode():
    assert torch.equal(model.logits(model(processor(question))), again.logits(again(reader(question))))
print("the same logits")
