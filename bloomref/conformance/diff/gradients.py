"""Which known mistake in the backward pass explains wrong gradients, and where the backward pass goes wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.checks.gradients import judged
from bloomref.conformance.gradient_names import named
from bloomref.conformance.mistakes import MISTAKES, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, Judgement
from bloomref.conformance.oracle.gradient_budgets import SIMULATED, UNITS, exact, rms, spread
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array


@dataclass(frozen=True)
class GradientExplanation:
    """A known mistake, compared with the gradients of an implementation.

    Args:
        mistake: the known mistake.
        z: largest Z of the loss and the gradients against a model that makes the mistake.
    """

    mistake: Mistake
    z: float

    @property
    def matches(self) -> bool:
        """True if the mistake leaves nothing but rounding."""
        return self.z <= LIMIT


def answer(subject: Subject, case: Case) -> dict[str, Array]:
    """The loss and the gradients of an implementation, in float64.

    Raises:
        Raised: the implementation raised; Unsupported: it cannot answer.
    """
    loss, by_name = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, case.labels)
    outputs = {"loss": loss} | dict(by_name)
    return {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()}


def explain(
    case: Case, dtype: str, outputs: Mapping[str, Array], mistakes: Sequence[Mistake] = MISTAKES
) -> list[GradientExplanation]:
    """Return the known mistakes of the backward pass that match an answer, best first.

    Args:
        outputs: the loss and the gradients, as from `answer`.
    """
    candidates = [known for known in mistakes if known.is_of_gradients and (case.lora or not known.is_of_adapters)]
    explanations = [GradientExplanation(known, _distance(case, dtype, outputs, known)) for known in candidates]
    return sorted((each for each in explanations if each.matches), key=lambda each: each.z)


def _distance(case: Case, dtype: str, outputs: Mapping[str, Array], known: Mistake) -> float:
    """Largest Z against the exact gradients of a model that makes the mistake.

    Their budget is that of the case, in proportion to their size.
    """
    with np.errstate(all="ignore"):
        loss, gradients = known.model.of(case).loss_and_gradients(case.token_ids, case.is_real, case.labels)
    mutant = {"loss": np.asarray(loss)} | named(case.config, gradients, case.lora.form if case.lora else "")
    largest, is_shown = 0.0, False
    for name, right in exact(case).items():
        if name not in outputs or outputs[name].shape != right.shape:
            return np.inf
        allowed = spread(case)[name] * UNITS[dtype] / SIMULATED
        if allowed > MAX_NOISE * rms(right):
            continue
        larger = max(1.0, rms(mutant[name]) / rms(right)) if rms(right) else 1.0
        error = rms(outputs[name] - mutant[name])
        largest = max(largest, error / (allowed * larger)) if error else largest
        is_shown |= rms(mutant[name] - right) > LIMIT * allowed
    return largest if is_shown else np.inf


def explain_gradients(subject: Subject, case: Case) -> list[str]:
    """Lines about the gradients of a case, in the order of the backward pass: the first wrong one, and the known
    mistake that explains it. Empty if all are right."""
    outputs = answer(subject, case)
    judgements = judged(case, subject.dtype, outputs["loss"], {k: v for k, v in outputs.items() if k != "loss"})
    wrong = [judgement for judgement in judgements if judgement.verdict == "fail"]
    if not wrong:
        return []
    matches = explain(case, subject.dtype, outputs)
    lines = [_first(wrong, judgements)]
    if matches:
        mistake = matches[0].mistake
        lines.append(f"matches {mistake.name} ({', '.join(mistake.clauses)}): it {mistake.sentence}")
        lines += [f"  on this input, {each.mistake.name} has the same effect" for each in matches[1:3]]
        return lines
    lines.append("no known mistake of the backward pass explains it")
    return lines + _untied(subject, case, wrong)


def _first(wrong: Sequence[Judgement], judgements: Sequence[Judgement]) -> str:
    first, *others = wrong
    right = sum(judgement.verdict == "pass" for judgement in judgements)
    further = f"; {len(others)} wrong further back" if others else ""
    return f"first wrong in the backward pass: {first.name} (Z {first.z:.3g}){further}; {right} right"


def _untied(subject: Subject, case: Case, wrong: Sequence[Judgement]) -> list[str]:
    """Ask the same case with an untied head, if the gradient of the tied embedding is the only wrong one."""
    if not case.config.tie_word_embeddings or [each.name for each in wrong] != ["transformer.word_embeddings.weight"]:
        return []
    untied = replace(case, config=case.config.replace(tie_word_embeddings=False))
    if case.arrays is not None or subject.missing(untied):
        return []
    outputs = answer(subject, untied)
    rest = judged(untied, subject.dtype, outputs["loss"], {k: v for k, v in outputs.items() if k != "loss"})
    is_right = all(judgement.verdict != "fail" for judgement in rest)
    return ["with an untied head it is right"] if is_right else ["with an untied head it is wrong, too"]
