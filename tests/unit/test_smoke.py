import numpy as np

from bloomref.config import BloomConfig
from bloomref.params import init_params
from bloomref.reference import model, trace


def test_smoke():
    for dt in (np.float64, np.float32, np.float16, "bfloat16"):
        import ml_dtypes

        dtype = np.dtype(dt) if dt != "bfloat16" else np.dtype(ml_dtypes.bfloat16)
        c = BloomConfig(vocabulary_size=50, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=40)
        p = init_params(c, 0, dtype)
        with trace.record() as seen:
            h = model.forward(
                p,
                c,
                np.array([[1, 2, 3], [4, 5, 6]]),
                np.array([[True, True, True], [False, True, True]]),
                rng=np.random.default_rng(0),
            )
            model.logits(p, h)
        assert h.dtype == dtype
        print(list(seen))
