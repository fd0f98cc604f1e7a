"""CTranslate2: its converter silently drops layer_norm_epsilon and the post-layernorm residual. Needs bloomref."""

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.ctranslate2 import CTranslate2
from bloomref.conformance.cases import Case
from bloomref.conformance.subject import named_weights

usual = BloomConfig(vocabulary_size=97, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256)
for change in ({}, {"layer_norm_epsilon": 1e-3}, {"apply_residual_connection_post_layernorm": True}):
    case = Case(usual.replace(**change), time=9)
    ids, real = case.token_ids, case.is_real
    output = CTranslate2().load(case.config, named_weights(case.config, case.params), "float32").logits(ids, real)
    inputs = {"token_ids": ids, "padding_mask": real}
    models = [BloomBackbone.from_params(config, case.params, "float64") for config in (case.config, usual)]
    truth, dropped = (model.engine.logits(model(inputs)) for model in models)
    print(
        f"{change}: off by {np.abs(output - truth).max():.2g} of {np.abs(truth).max():.3g}; without it {np.abs(output - dropped).max():.2g}"
    )
