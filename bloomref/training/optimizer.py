"""AdamW (arXiv:1711.05101), step for step as in torch, gradient clipping, and the learning rate.

Updates are made in place, in chunks that stay in the processor's cache.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bloomref.errors import BadWeights
from bloomref.shapes import Array
from bloomref.training.settings import Settings

_CHUNK = 1 << 15  # elements: five arrays of them fit into a second-level cache


@dataclass
class AdamW:
    """State of the optimiser: two moments of every variable, and the number of updates.

    Args:
        decays: the names of the variables that weight decay acts on.
        moments: name -> (first, second moment), of the variable's shape and dtype.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decays: frozenset[str]
    moments: dict[str, tuple[Array, Array]]
    updates: int = field(default=0)

    @classmethod
    def create(
        cls,
        variables: Mapping[str, Array],
        decays: frozenset[str],
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
    ) -> "AdamW":
        """An optimiser before its first update, with moments of zero."""
        moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in variables.items()}
        return cls(beta1, beta2, epsilon, weight_decay, decays, moments)

    def update(self, variables: Mapping[str, Array], gradients: Mapping[str, Array], learning_rate: float) -> None:
        """Change every variable in place. Clause: TRN-9.

        Args:
            variables: name -> a contiguous array.
            gradients: name -> an array of the same size.
        """
        self.updates += 1
        step_size = learning_rate / (1.0 - self.beta1**self.updates)
        root = math.sqrt(1.0 - self.beta2**self.updates)
        for name, variable in variables.items():
            keep = 1.0 - learning_rate * self.weight_decay if name in self.decays else 1.0
            for weight, gradient, first, second in _chunks(variable, gradients[name], *self.moments[name]):
                self._update_chunk(weight, gradient, first, second, keep, step_size, root)

    def _update_chunk(
        self, weight: Array, gradient: Array, first: Array, second: Array, keep: float, step_size: float, root: float
    ) -> None:
        weight *= keep
        first += (gradient - first) * (1.0 - self.beta1)
        second *= self.beta2
        second += (1.0 - self.beta2) * gradient * gradient
        denominator = np.sqrt(second)
        denominator /= root
        denominator += self.epsilon
        weight -= step_size * (first / denominator)


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Flat views of a few thousand elements of each array; they write through."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _CHUNK):
        yield tuple(array[start : start + _CHUNK] for array in flat)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then a cosine to `final_rate` of the peak.

    Clause: TRN-10.
    """
    peak, warmup, floor = settings.learning_rate, settings.warmup, settings.final_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def clip_by_norm(gradients: Mapping[str, Array], limit: float | None) -> float:
    """Scale all gradients in place so that their common norm is at most `limit`;
    returns the norm before. Clause: TRN-11.

    As torch's `clip_grad_norm_`, 1e-6 is added to the norm that divides.

    Raises:
        BadWeights: when the norm is not finite.
    """
    norm = math.sqrt(sum(_square(array) for array in gradients.values()))
    if not math.isfinite(norm):
        raise BadWeights(f"gradients: expected a finite norm, got {norm}; a lower learning rate may help")
    if limit is not None and (scale := limit / (norm + 1e-6)) < 1.0:
        for gradient in gradients.values():
            gradient *= scale
    return norm


def _square(array: Array) -> float:
    """Sum of squares: within a chunk in the dtype of the array, over the chunks in float64."""
    return sum(float(np.dot(chunk, chunk)) for (chunk,) in _chunks(array))
