"""transformers: a mask value of 2 is accepted, and doubles distances."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


one, two = (model()(torch.arange(10)[None], attention_mask=torch.full((1, 10), m)).logits for m in (1, 2))
print(f"a mask of 2 in place of 1 changes logits by {(one - two).abs().max():.3g} of {one.abs().max():.3g}")
