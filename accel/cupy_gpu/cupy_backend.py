"""`CupyBackend`: bloomref's backend interface on one device.

The device is an argument, so tests run it on an emulated one.
"""

from collections.abc import Callable

from accel.cupy_gpu.device import Device
from accel.cupy_gpu.memory import half_dtypes, memory, why_weights_do_not_fit
from accel.cupy_gpu.prepared import CupyPrepared
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import Unsupported
from bloomref.params import Params
from bloomref.runtime.backend import API_VERSION, Declaration, Memory


class CupyBackend:
    """BLOOM on one GPU.

    Args:
        name: Name that the user chose, "cupy" or "cupy:1".
        find: Returns the device, or raises Unsupported with the reason why it cannot be used.
    """

    api_version = API_VERSION
    declaration = Declaration(gradients=(), packages=("cupy-cuda13x", "cupy-cuda12x", "numpy"))

    def __init__(self, name: str, find: Callable[[], Device]) -> None:
        self.name = name
        self._find = find

    def unsupported(self, config: BloomConfig, policy: DTypePolicy) -> str | None:
        try:
            device = self._find()
        except Unsupported as error:
            return str(error)
        if policy.compute_dtype == "bfloat16" and "bfloat16" not in half_dtypes(device.arch):
            return f"{device.name} computes bfloat16 only from compute capability 8.0 on; use dtype='float16'"
        return why_weights_do_not_fit(device, config, policy)

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> CupyPrepared:
        return CupyPrepared(self._find(), params, config, policy)

    def memory(self, config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
        return memory(config, policy, batch, length, self._find().sms)
