"""Load a model from a folder; print the peak of anonymous memory, and what remains of it, in units of the packed
weights.

Mapped pages of a file count as resident, but the system can take them back at any time: they are no copy. Anonymous
memory is what a process cannot give back. Linux records no peak of it, so a thread samples it every millisecond.
"""

import gc
import sys
import threading
import time
from pathlib import Path

from bloomref import BloomBackbone
from bloomref.dtypes import dtype_policy
from bloomref.runtime import registry


def anonymous() -> int:
    return int(Path("/proc/self/status").read_text("utf-8").split("RssAnon:")[1].split()[0]) * 1024


def sample(samples: list[int], ended: threading.Event) -> None:
    while not ended.is_set():
        samples.append(anonymous())
        time.sleep(0.001)


warm_up, folder, dtype = sys.argv[1:]
BloomBackbone.from_preset(warm_up, dtype=dtype, backend="numba")  # compiles the kernels, and starts their threads
start, samples, ended = anonymous(), [0], threading.Event()
sampler = threading.Thread(target=sample, args=(samples, ended))
sampler.start()
model = BloomBackbone.from_preset(folder, dtype=dtype, backend="numba")
ended.set()
sampler.join()
gc.collect()
packed = registry.load("numba").memory(model.config, dtype_policy(dtype), 1, 1).weights
print((max(samples) - start) / packed, (anonymous() - start) / packed)
