"""KerasHub: in float16, q k is formed before it is scaled by 1/sqrt(K), and overflows;
transformers scales inside the product.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
import numpy as np
from keras_hub.src.models.bloom.bloom_attention import BloomAttention

layer = BloomAttention(num_heads=1, dtype="float16")
layer.build((1, 2, 64))
for dense in (layer._query_dense, layer._key_dense, layer._value_dense):
    dense.kernel.assign(np.eye(64, dtype="float32").reshape(64, 1, 64))
x = np.full((1, 2, 64), 40.0, "float16")  # q k = 102400 > 65504; scaled it is 12800
got = np.asarray(layer(x, attention_mask=np.tril(np.ones((1, 2, 2), bool))), "float32")
print(f"{np.isnan(got).sum()} of {got.size} results are NaN")
