"""bloomref's backends: the engine alone, token by token. `benchmarks.generate` times `BloomCausalLM.generate`."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.floors import SIDE, best_seconds, product_rate
from benchmarks.participants.protocol import Stepwise

ROWS = 512


class Model(Stepwise):
    def __init__(self, folder: Path, dtype: str, name: str, threads: int) -> None:
        from bloomref.backbone import BloomBackbone

        if name == "numba":
            import numba

            numba.set_num_threads(threads)
        self.engine = BloomBackbone.from_preset(folder / "model", dtype=dtype, backend=name).engine

    def read(self, ids: Any, steps: int) -> Any:
        self.cache = self.engine.new_cache(ids.shape[0], ids.shape[1] + steps)
        self.position = ids.shape[1]
        return self.engine.next_logits(self.engine.run(self.cache, 0, ids))

    def step(self, ids: Any) -> Any:
        hidden = self.engine.run(self.cache, self.position, ids)
        self.position += 1
        return self.engine.next_logits(hidden)

    def product_rate(self) -> float | None:
        """Rate of NumPy's product for the reference; of the MLP, which is mostly two products, for other backends."""
        if self.engine.backend == "numpy":
            return product_rate(np.ones((SIDE, SIDE), np.float32))
        config, prepared = self.engine.config, self.engine.prepared
        x = prepared.from_host(np.ones((1, ROWS, config.hidden_dim), np.float32))
        flops = 4 * ROWS * config.hidden_dim * config.intermediate_dim
        return flops / best_seconds(lambda: prepared.mlp_block(0, x), 10) / 1e9
