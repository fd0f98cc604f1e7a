"""transformers: ids of small integer types, and a sequence of length 0, raise RuntimeError."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


ids = torch.arange(10)[None]
for given in (ids.to(torch.int8), ids.to(torch.int16), ids.to(torch.uint8), ids[:, :0]):
    try:
        print(model()(given).logits.shape)
    except RuntimeError as error:
        print(given.dtype, tuple(given.shape), str(error)[:70])
