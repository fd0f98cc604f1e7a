"""The backend `cupy-emulated`: all of accel.cupy_gpu, its kernels included, but on the CPU. AttentionArgs by `pytest --emulated-cupy`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

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
