"""transformers: in float16, left padding can give NaN: the mask is added to scores, which overflow."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
for dtype in (torch.float32, torch.float16):
    for first in range(0, 90, 6):
        it = model().to(dtype)
        for block in it.transformer.h:
            block.self_attention.query_key_value.weight.data *= 20
        real = it(torch.arange(first, first + 6).reshape(2, 3), attention_mask=mask).logits[1, 1:]
        print("NaN" if real.isnan().any() else "finite", end=", ")
    print(dtype)
