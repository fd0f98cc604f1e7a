"""transformers: the softmax, the ALiBi slopes and the loss of a float64 model are float32."""

from types import SimpleNamespace
from unittest import mock

import torch
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom import modeling_bloom


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


wide = SimpleNamespace(**{**vars(torch), "float32": torch.float64})  # its code sees float64 instead
ids = torch.arange(16)[None]
out = model(n_head=16).double()(ids, labels=ids)
with mock.patch.object(modeling_bloom, "torch", wide):
    true = model(n_head=16).double()(ids).logits
print(
    f"logits are off by {(out.logits - true).abs().max():.2g} of {true.abs().max():.3g}; the loss is {out.loss.dtype}"
)
