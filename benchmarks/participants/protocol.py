"""What a participant can do once its model is loaded. Prompts are int64 (B, T); logits float32 (B, V)."""

from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any

FEWEST, ENOUGH = 4, 2.0  # steps, seconds: decoding that takes longer is cut short


class Model(ABC):
    """A loaded model; made from the folder, the dtype and the number of threads."""

    @abstractmethod
    def logits(self, ids: Any) -> Any:
        """Logits behind each prompt."""

    @abstractmethod
    def run(self, ids: Any, steps: int) -> tuple[float, float]:
        """Seconds of reading the prompts up to the first logits, and of each of up to `steps` more tokens of all rows."""

    def product_rate(self) -> float | None:
        """GFLOP/s of a large matrix product in the model's dtype by this participant's own kernels, where it has one."""
        return None


class Stepwise(Model):
    """A participant that can be driven token by token."""

    @abstractmethod
    def read(self, ids: Any, steps: int) -> Any:
        """Logits behind the prompts; starts anew, with room for `steps` more tokens."""

    @abstractmethod
    def step(self, ids: Any) -> Any:
        """Read one more token of each row, (B, 1), behind what was read; logits behind it."""

    def logits(self, ids: Any) -> Any:
        """The last token is read behind the others, so that the cache is checked as well."""
        self.read(ids[:, :-1], 1)
        return self.step(ids[:, -1:])

    def run(self, ids: Any, steps: int) -> tuple[float, float]:
        began = perf_counter()
        self.read(ids, steps)
        read = perf_counter()
        done = 0
        while done < steps and (done < FEWEST or perf_counter() - read < ENOUGH):
            self.step(ids[:, :1])
            done += 1
        return read - began, (perf_counter() - read) / max(done, 1)
