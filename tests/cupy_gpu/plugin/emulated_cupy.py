"""The backend `cupy-emulated`: accel.cupy_gpu and its kernels on the CPU. `pytest --emulated-cupy` adds it."""

import toolchain
from emulated_device import EmulatedDevice

from accel.cupy_gpu.cupy_backend import CupyBackend
from bloomref.errors import Unsupported


def make_backend() -> CupyBackend:
    device = EmulatedDevice()

    def find() -> EmulatedDevice:
        reason = toolchain.emulator_missing()
        if reason is not None:
            raise Unsupported(reason)
        return device

    return CupyBackend("cupy-emulated", find)
