"""transformers: in float64, left padding gives NaN at every real token of a padded row."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


mask = torch.ones(2, 8, dtype=torch.int64)
mask[1, :3] = 0
for dtype in (torch.float32, torch.float64):
    real = model().to(dtype)(torch.arange(16).reshape(2, 8), attention_mask=mask).logits[1, 3:]
    print(f"{dtype}: {int(real.isnan().sum())} of {real.numel()} logits of real tokens are NaN")
