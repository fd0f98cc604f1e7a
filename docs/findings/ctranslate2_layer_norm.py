"""CTranslate2: its layer norm loses the variance if the mean is large, like mean of squares minus squared mean.

Needs bloomref.
"""

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.ctranslate2 import CTranslate2
from bloomref.conformance.cases import Case
from bloomref.conformance.subject import named_weights
from bloomref.params import Params

config = BloomConfig(vocabulary_size=97, num_layers=1, num_heads=4, hidden_dim=64, intermediate_dim=256)
case = Case(config, time=9)
ids, real = case.token_ids, case.is_real
inputs = {"token_ids": ids, "padding_mask": real}
for mean in (0, 10, 100, 1000):
    arrays = {key: array.reshape(weight.hf_shape(config)) for key, weight, array in case.params.named()}
    arrays["word_embeddings_layernorm.bias"] = arrays["word_embeddings_layernorm.bias"] + float(mean)
    params = Params.from_named(config, arrays).astype(np.dtype("float32")).astype(np.dtype("float64"))
    models = [BloomBackbone.from_params(config, params, dtype) for dtype in ("float64", "float32")]
    truth, usual = (model.engine.logits(model(inputs)) for model in models)
    output = CTranslate2().load(config, named_weights(config, params), "float32").logits(ids, real)
    print(
        f"mean {mean}: off by {np.abs(output - truth).max():.1e}; float32 with centred squares {np.abs(usual - truth).max():.1e}"
    )
