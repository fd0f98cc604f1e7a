"""transformers: in bfloat16, the error grows with the text, since ALiBi and scores are rounded to it."""

import torch
from transformers import BloomConfig, BloomForCausalLM


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


ids = torch.randint(0, 97, (1, 2048))
with torch.no_grad():
    rounded = model(n_head=16).bfloat16()
    exact = model(n_head=16).bfloat16().double()  # the same weights
    for time in (64, 256, 1024, 2048):
        true, got = exact(ids[:, :time]).logits[0], rounded(ids[:, :time]).logits[0].double()
        last = (got - true)[-32:].norm() / true[-32:].norm()
        print(f"T = {time}: error {(got - true).norm() / true.norm():.1%} rms, in the last 32 tokens {last:.1%}")
