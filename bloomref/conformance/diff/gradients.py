"""Which known mistake of the backward pass explains wrong gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.gradient_names import named
from bloomref.conformance.mistakes import MISTAKES, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE
from bloomref.conformance.oracle.gradient_budgets import SIMULATED, UNITS, exact, rms, spread
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array


@dataclass(frozen=True)
class GradientExplanation:
    """A known mistake that leaves nothing but rounding.

    Args:
        mistake: the known mistake.
        z: largest Z of the loss and the gradients against a model that makes the mistake.
    """

    mistake: Mistake
    z: float


def explain_gradients(subject: Subject, case: Case) -> list[GradientExplanation]:
    """Return the known mistakes that explain the gradients of an implementation, best first.

    Raises:
        Raised: the implementation raised; Unsupported: it cannot answer.
    """
    loss, by_name = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, case.labels)
    outputs = {"loss": loss} | dict(by_name)
    return explain(case, subject.dtype, {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()})


def explain(
    case: Case, dtype: str, outputs: Mapping[str, Array], mistakes: Sequence[Mistake] = MISTAKES
) -> list[GradientExplanation]:
    """Return the known mistakes of the backward pass that match, best first.

    Args:
        outputs: the loss and the gradients by name.
    """
    candidates = [known for known in mistakes if known.is_of_gradients and (case.lora or not known.is_of_adapters)]
    explanations = [GradientExplanation(known, _distance(case, dtype, outputs, known)) for known in candidates]
    return sorted((each for each in explanations if each.z <= LIMIT), key=lambda each: each.z)


def _distance(case: Case, dtype: str, outputs: Mapping[str, Array], known: Mistake) -> float:
    """Largest Z against the exact gradients of a model that makes the mistake; infinite if the mistake changes none.

    The budget of a gradient is that of the case, in proportion to its size.
    """
    with np.errstate(all="ignore"):
        loss, gradients = known.model.of(case).loss_and_gradients(case.token_ids, case.is_real, case.labels)
    mutant = {"loss": np.asarray(loss)} | named(case.config, gradients, case.lora.form if case.lora else "")
    largest, is_shown = 0.0, False
    for name, right in exact(case).items():
        if name not in outputs or outputs[name].size != right.size:
            return np.inf
        allowed = spread(case)[name] * UNITS[dtype] / SIMULATED
        if allowed <= MAX_NOISE * rms(right):
            scale = max(1.0, rms(mutant[name]) / rms(right)) if rms(right) else 1.0
            error = rms(outputs[name].reshape(right.shape) - mutant[name])
            largest = max(largest, error / (allowed * scale) if error else 0.0)
            is_shown |= rms(mutant[name] - right) > LIMIT * allowed
    return largest if is_shown else np.inf
