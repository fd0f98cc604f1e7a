"""CTranslate2: its converter drops layer_norm_epsilon and the residual form without a word. Needs bloomref."""

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.ctranslate2 import CTranslate2
from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.subject import named_weights

usual = BloomConfig(vocabulary_size=97, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256)
for change in ({}, {"layer_norm_epsilon": 1e-3}, {"apply_residual_connection_post_layernorm": True}):
    case = Case(usual.replace(**change), time=9)
    ids, real = case.token_ids, case.is_real
    got = CTranslate2().load(case.config, named_weights(case.config, case.params), "float32").logits(ids, real)
    true, dropped = (InstrumentedModel(config, case.params).run(ids, real)["logits"] for config in (case.config, usual))
    print(
        f"{change}: off by {np.abs(got - true).max():.2g} of {np.abs(true).max():.3g}; without it {np.abs(got - dropped).max():.2g}"
    )
