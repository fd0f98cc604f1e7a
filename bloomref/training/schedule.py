"""The learning rate of a step."""

import math

from bloomref.training.settings import Settings


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Of step `step` (from 0) of `steps`: linear warm-up, then a cosine down to `final_rate` of the peak. Clause: TRN-10."""
    peak, warmup, floor = settings.learning_rate, settings.warmup, settings.final_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
