"""transformers: slow_but_exact with pretraining_tp > 1 drops the biases of dense and dense_4h_to_h."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


ids = torch.arange(18).reshape(2, 9)
plain, slow, without = model(), model(slow_but_exact=True, pretraining_tp=2), model()
for name, p in without.named_parameters():
    if name.endswith(("dense.bias", "dense_4h_to_h.bias")):
        p.data.zero_()
a, b, c = (each(ids).logits for each in (plain, slow, without))
print(f"off by {(a - b).abs().max():.3g} of {a.abs().max():.3g}; from a model without them: {(b - c).abs().max():.2g}")
