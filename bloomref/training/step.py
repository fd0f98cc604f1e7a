"""One forward and backward pass: the one place where training asks a model for gradients."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bloomref.shapes import Array
from bloomref.training.packing import Batch


@dataclass(frozen=True, eq=False)
class Gradients:
    """The mean loss over `counted` tokens in nats, and its gradient by every variable."""

    loss: float
    counted: int
    of: Mapping[str, Array]


Step = Callable[[Batch, np.random.Generator | None], Gradients]


def accumulated(step: Step, batches: Iterable[tuple[Batch, np.random.Generator | None]]) -> Gradients:
    """What one batch of all the rows would give: each part weighs as much as it has tokens to predict. Clause: TRN-12.

    One part at a time: the gradients of two exist at once.
    """
    loss, counted, total = 0.0, 0, dict[str, Array]()
    for batch, rng in batches:
        part = step(batch, rng)
        loss, counted = loss + part.loss * part.counted, counted + part.counted
        for name, gradient in part.of.items():
            gradient *= part.counted
            total[name] = np.add(total[name], gradient, out=total[name]) if name in total else gradient
    for gradient in total.values():
        gradient /= max(1, counted)
    return Gradients(loss / max(1, counted), counted, total)
