"""Run a small model in float32; print the number of compilations, the kernels' folder and a hash of the bits."""

import hashlib

import numpy as np
from numba.core import event

from accel.numba_cpu import make_backend
from accel.numba_cpu.jit_cache import cache_folder
from bloomref.config import BloomConfig
from bloomref.dtypes import dtype_policy
from bloomref.params import init_params
from bloomref.runtime.backend import Step

with event.install_recorder("numba:compile") as recorder:
    config = BloomConfig(vocabulary_size=50, num_layers=1, num_heads=3, hidden_dim=21, intermediate_dim=33)
    policy = dtype_policy("float32")
    prepared = make_backend().prepare(init_params(config, 0, policy.variable_dtype), config, policy)
    facts = Step.at(0, np.ones((2, 9), bool))
    x = prepared.embed(np.arange(18).reshape(2, 9))
    x = prepared.mlp_block(0, prepared.attention_block(0, x, prepared.new_cache(2, 9), facts))
    logits = prepared.logits(prepared.final_norm(x), False)
print(len(recorder.buffer) // 2, cache_folder().name, hashlib.sha256(logits.tobytes()).hexdigest())
