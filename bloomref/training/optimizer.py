"""AdamW (arXiv:1711.05101) with the operations of torch's AdamW, gradient clipping, and the learning rate schedule.

Updates are in place, in chunks that stay in the processor's cache.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bloomref.errors import BadWeights
from bloomref.shapes import Array
from bloomref.training.settings import Settings

_CHUNK = 1 << 15  # elements: chunks of five arrays fit into a second-level cache


@dataclass
class AdamW:
    """State of the optimiser: two moments of every variable, and the number of updates. Clause: TRN-9.

    Args:
        beta1: decay rate of the first moment, in [0, 1).
        beta2: decay rate of the second moment, in [0, 1).
        epsilon: number added to the denominator.
        weight_decay: coefficient λ of the decoupled weight decay.
        decays: names of the variables with weight decay.
        moments: name -> (first, second moment), each in the variable's shape and dtype.
        updates: number of updates so far.
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
        """Create an optimiser whose moments are zero. `variables` has their names, shapes and dtypes."""
        moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in variables.items()}
        return cls(beta1, beta2, epsilon, weight_decay, decays, moments)

    def update(self, variables: Mapping[str, Array], gradients: Mapping[str, Array], learning_rate: float) -> None:
        """Update every variable in place. Clause: TRN-9.

        Args:
            variables: name -> contiguous array.
            gradients: name -> array of the same size.
            learning_rate: learning rate of this update.
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
    """Yield writable flat views of `_CHUNK` consecutive elements of each array."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _CHUNK):
        yield tuple(array[start : start + _CHUNK] for array in flat)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Learning rate of a step: linear warm-up to the peak, then cosine decay. Clause: TRN-10.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the run.
        settings: `learning_rate` is the peak, `warmup` the number of warm-up steps, and `final_rate` the last rate as a
            fraction of the peak.
    """
    peak, warmup, floor = settings.learning_rate, settings.warmup, settings.final_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def clip_by_norm(gradients: Mapping[str, Array], limit: float | None) -> float:
    """Scale all gradients in place, so that their global L2 norm is at most `limit`. Clause: TRN-11.

    As in torch's `clip_grad_norm_`, the scale is limit / (norm + 1e-6).

    Args:
        gradients: name -> contiguous array.
        limit: largest norm; None: no clipping.

    Returns:
        The norm before clipping.

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
    """Sum of squares, accumulated in the dtype of the array within a chunk, and in float64 over the chunks."""
    return sum(float(np.dot(chunk, chunk)) for (chunk,) in _chunks(array))
