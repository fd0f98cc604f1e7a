"""Run a small model and print how long the threads of BLAS ran meanwhile (ns), how long they run for one product, and
the threads that the kernels take."""

import os
import sys
import time
from pathlib import Path

import numpy as np

TASKS = Path("/proc/self/task")
POOL = {path.name for path in TASKS.iterdir()} - {str(os.getpid())}  # BLAS starts it with NumPy; Numba's come later


def pool_time() -> int:
    """CPU time of the pool once it is idle: the threads spin for a while before they sleep."""
    time.sleep(0.5)
    return sum(int((TASKS / name / "schedstat").read_text("ascii").split()[0]) for name in POOL)


if __name__ == "__main__":
    from accel.numba_cpu.isa import thread_count
    from bloomref.config import BloomConfig
    from bloomref.dtypes import dtype_policy
    from bloomref.params import init_params
    from bloomref.runtime.engine import Engine
    from bloomref.runtime.inputs import TokenBatch

    config = BloomConfig(vocabulary_size=3000, num_layers=2, num_heads=4, hidden_dim=256, intermediate_dim=1024)
    policy = dtype_policy(sys.argv[1])
    params, ids = init_params(config, 0, policy.variable_dtype), np.ones((2, 128), np.int64)
    start = pool_time()
    engine = Engine(params, config, policy, "numba")
    for _ in range(3):
        engine.logits(engine.hidden(TokenBatch(ids, ids > 0)))
    of_model = pool_time() - start
    square = np.ones((1000, 1000))
    square @ square
    print(of_model, pool_time() - start - of_model, thread_count())
