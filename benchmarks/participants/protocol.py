"""Interface of a loaded participant. Prompts are int64 (B, T), logits float32 (B, V)."""

from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any

FEWEST, ENOUGH = 4, 2.0  # decoding ends early after at least 4 steps and 2 seconds


class Model(ABC):
    """A loaded model. The constructor takes the folder, the dtype, the participant's name and the number of threads."""

    @abstractmethod
    def logits(self, ids: Any) -> Any:
        """Logits of the token after each prompt."""

    @abstractmethod
    def run(self, ids: Any, steps: int) -> tuple[float, float]:
        """Seconds of the prefill, up to its logits, and mean seconds of a decoding step, of at most `steps` steps."""

    def product_rate(self) -> float | None:
        """GFLOP/s of a large matrix product in the model's dtype by this participant's kernels; None if it has none."""
        return None


class Stepwise(Model):
    """A participant that can be driven token by token."""

    @abstractmethod
    def read(self, ids: Any, steps: int) -> Any:
        """Prefill the prompts into a new cache with room for `steps` more tokens; returns the next logits."""

    @abstractmethod
    def step(self, ids: Any) -> Any:
        """Append one token to each row, ids (B, 1); returns the next logits."""

    def logits(self, ids: Any) -> Any:
        """Logits after each prompt. The last token goes through the cache, which is thereby checked as well."""
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
