"""llama.cpp on a CPU: the GELU of a float32 model is a table over float16. Needs bloomref."""

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.llama_cpp import LlamaCpp
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle import truth
from bloomref.conformance.subject import named_weights

case = Case(BloomConfig(vocabulary_size=97, num_layers=1, num_heads=4, hidden_dim=64, intermediate_dim=256), time=40)
model = LlamaCpp().load(case.config, named_weights(case.config, case.params), "float32")
seen = model.trace(case.token_ids, case.is_real)
for name in ("embedding_norm", "layers.0.attention.context", "layers.0.mlp.up", "layers.0.mlp.gelu", "logits"):
    true = truth(case).values[name]
    print(f"{name}: off by {np.abs(seen[name] - true).max() / np.abs(true).max():.1e} of the largest")
gelu = seen["layers.0.mlp.gelu"]
print(
    f"{(gelu == np.float16(gelu)).mean():.0%} of its GELU are float16 numbers, {(seen['logits'] == np.float16(seen['logits'])).mean():.0%} of its logits"
)
