"""Which calls run on all threads: those that are long enough to pay for waking the others.

A call reads its weights, and keys and values, once; to multiply MR rows with them takes about as long as reading them
once more. A call that reads so less than `SHARED_FROM` bytes runs on the caller's thread alone. It neither wakes nor
waits for another one, which on a shared machine may not be running when it is waited for.
"""

from dataclasses import dataclass
from typing import Final

from accel.numba_cpu.isa import MR, thread_count
from bloomref.config import BloomConfig

# 8 MB take one thread 0.2 to 0.4 ms, several times what it takes to wake the others and to wait for them.
# `python -m benchmarks.threads` measures from where on all threads are faster than one.
SHARED_FROM: Final = 8 << 20


@dataclass(frozen=True)
class Sharing:
    """The threads of a model's calls.

    Args:
        config: the model's sizes.
        itemsize: bytes of a number in the compute dtype.
    """

    config: BloomConfig
    itemsize: int

    def attention(self, batch: int, time: int, stop: int) -> int:
        """Threads of the first half of a block: of `time` positions, the last of them before `stop`."""
        return self._threads(self._read(batch * time, 4 * self.config.hidden_dim) + batch * self._read(time, 2 * stop))

    def mlp(self, rows: int) -> int:
        """Threads of the second half of a block."""
        return self._threads(self.mlp_bytes(rows))

    def mlp_bytes(self, rows: int) -> int:
        """Bytes that the second half of a block reads."""
        return self._read(rows, 2 * self.config.intermediate_dim)

    def logits(self, rows: int) -> int:
        """Threads of the product with the head."""
        return self._threads(self._read(rows, self.config.vocabulary_size))

    def _read(self, rows: int, columns: int) -> int:
        """Bytes of hidden_dim x `columns` numbers, once, and once more for every MR rows."""
        return self.config.hidden_dim * columns * self.itemsize * (1 + rows // MR)

    def _threads(self, read: int) -> int:
        return thread_count() if read >= SHARED_FROM else 1
