"""Fixed cases of every run. Each shows mistakes that few drawn cases show."""

from typing import Any

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.lora.adapter import DENSE_LAYERS


def _config(heads: int, width: int, layers: int = 2, vocabulary: int = 37, **changes: Any) -> BloomConfig:
    hidden = heads * width
    sizes = {"vocabulary_size": vocabulary, "num_layers": layers, "num_heads": heads, "hidden_dim": hidden}
    return BloomConfig(**sizes | {"intermediate_dim": 4 * hidden} | changes)


LORA = Lora((*LINEARS, EMBEDDING), alpha=12.0, dropout=0.5, ranks=(("dense", 2),), alphas=(("dense_h_to_4h", 3.0),))

FIXED_CASES: tuple[Case, ...] = (
    Case(_config(2, 4), seed=1, batch=2, time=7, name="plain"),
    Case(
        _config(6, 5, 3), seed=2, batch=3, time=24, kind="left", cuts=(17, 18, 19, 20, 21, 22, 23), name="left padding"
    ),
    Case(_config(3, 10), seed=3, batch=3, time=24, kind="right", cuts=(5, 20), name="right padding"),
    Case(_config(5, 6), seed=4, batch=3, time=24, kind="holes", cuts=(9, 10), name="holes"),
    Case(_config(3, 4), seed=5, batch=4, time=9, kind="padding row", cuts=(4,), name="rows of padding"),
    Case(_config(12, 3, 1), seed=6, batch=1, time=600, gain=0.5, cuts=(512, 599), name="600 positions"),
    Case(_config(16, 3, 1), seed=7, batch=1, time=320, qk_gain=0.1, kind="left", cuts=(319,), name="distance decides"),
    Case(_config(4, 6), seed=8, batch=1, time=40, qk_gain=60.0, cuts=(39,), name="sharp attention"),
    Case(_config(9, 3), seed=9, batch=2, time=12, embedding_std=2e-3, name="embedding below epsilon"),
    Case(_config(24, 2), seed=10, batch=2, time=16, name="24 heads"),
    Case(_config(112, 1, 1), seed=11, batch=1, time=20, name="112 heads"),
    Case(_config(3, 32), seed=12, batch=1, time=16, gain=2.0, name="wide"),
    Case(_config(4, 4, 1), seed=13, batch=1, time=1, name="one position"),
    Case(_config(3, 6, layer_norm_epsilon=1e-3), seed=14, embedding_std=2e-2, name="large epsilon"),
    Case(_config(3, 6, layer_norm_epsilon=1e-12), seed=15, embedding_std=2e-3, name="small epsilon"),
    Case(
        _config(6, 4, apply_residual_connection_post_layernorm=True), seed=16, time=12, name="post-layernorm residual"
    ),
    Case(_config(6, 4, tie_word_embeddings=False), seed=17, time=12, name="untied LM head"),
    Case(_config(6, 4, intermediate_dim=29), seed=18, time=12, name="odd MLP width"),
    Case(_config(6, 4, 0), seed=19, time=12, name="no layers"),
    Case(_config(4, 6), seed=25, time=9, offset=300.0, weights="float32", name="mean of 300 spreads"),
    Case(_config(6, 4), seed=21, batch=2, time=12, weights="float32", name="24-bit weights"),
    Case(_config(3, 4), seed=22, batch=3, time=9, kind="left", name="LoRA", lora=LORA),
    Case(
        _config(4, 4),
        seed=23,
        time=8,
        cuts=(3, 6, 7),
        name="LoRA over a cache",
        lora=Lora(LINEARS, rank=3, rslora=True),
    ),
    Case(
        _config(3, 5), seed=24, time=8, cuts=(5,), name="LoRA of KerasHub", lora=Lora(tuple(DENSE_LAYERS), form="keras")
    ),
    Case(_config(8, 4, 6), seed=20, batch=2, time=12, gain=0.7, kind="left", cuts=(11,), name="six layers"),
)
