"""Load a model from a folder and print, in units of its packed weights, the peak of anonymous memory and what stays of
it.

Mapped pages of the file count as resident, but the system takes them back whenever it wants: they are no copy. What a
process cannot give back is its anonymous memory. Linux keeps no peak of it, so a thread samples it, every millisecond.
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


def sample(seen: list[int], ended: threading.Event) -> None:
    while not ended.is_set():
        seen.append(anonymous())
        time.sleep(0.001)


warm_up, folder, dtype = sys.argv[1:]
BloomBackbone.from_preset(warm_up, dtype=dtype, backend="numba")  # compiles the kernels, and starts their threads
start, seen, ended = anonymous(), [0], threading.Event()
sampler = threading.Thread(target=sample, args=(seen, ended))
sampler.start()
model = BloomBackbone.from_preset(folder, dtype=dtype, backend="numba")
ended.set()
sampler.join()
gc.collect()
packed = registry.load("numba").memory(model.config, dtype_policy(dtype), 1, 1).weights
print((max(seen) - start) / packed, (anonymous() - start) / packed)
