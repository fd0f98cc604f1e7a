"""The loss and the gradients of everything that trains, within the rounding budget: of every weight, or of the factors
of a LoRA adapter.

Gradients are judged in the order of the backward pass, so the first wrong one is where it went wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.oracle.gradient_budgets import SIMULATED, UNITS, exact, judge, spread
from bloomref.conformance.subject import Subject
from bloomref.params import HF_PREFIX
from bloomref.shapes import Array

__all__ = ["NAMES", "SIMULATED", "UNITS", "exact", "gradients", "judged", "overview", "spread", "summarised"]

NAMES = "names of gradients"
"""Name of the judgement about the names."""
SHOWN = 3
"""Number of names that a message shows."""


def gradients(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge the loss and every gradient, for labels that differ from the input tokens."""
    if case.counted.any():
        yield from summarised(overview(subject, case))


def overview(subject: Subject, case: Case) -> list[Judgement]:
    """Judgements of the names, the loss and each gradient, in the order of the backward pass."""
    value, by_name = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, case.labels)
    return judged(case, subject.dtype, value, by_name)


def judged(case: Case, dtype: str, value: object, by_name: Mapping[str, Array]) -> list[Judgement]:
    """Judge an answer. A gradient without a judgement has no name in it."""
    outputs = {"loss": np.asarray(value, np.float64).reshape(())} | dict(by_name)
    allowed = spread(case)
    judgements = [_names(case, by_name)]
    for name, expected in exact(case).items():
        if name in outputs:
            result = np.asarray(outputs[name]).astype(np.float64)
            judgements.append(judge(dtype, name, result, expected, allowed[name]))
    return judgements


def _names(case: Case, by_name: Mapping[str, Array]) -> Judgement:
    """Judge the names (GRD-4). With an adapter, gradients of the frozen weights are neither asked nor judged."""
    expected = exact(case).keys() - {"loss"}
    missing = [name for name in exact(case) if name in expected - by_name.keys()]
    second = {"lm_head.weight"} if case.config.tie_word_embeddings and case.lora is None else set()
    surplus = sorted(second & by_name.keys())
    if missing:
        others = sorted(by_name.keys() - expected)
        text = (
            f"no gradient of {_some(missing)}; the answer has {_some(others)}, which the model lacks"
            if others
            else (f"no gradient of {_some(missing)}; the answer has {len(by_name)} of {len(expected)} names")
        )
    else:
        text = f"a gradient of {', '.join(surplus)}: a tied head has none of its own" if surplus else ""
    verdict = "fail" if text else "pass"
    return Judgement(NAMES, verdict, np.inf if text else 0.0, None, text)


def summarised(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Add to the first failure which other gradients are wrong and which are right."""
    wrong = [judgement for judgement in judgements if judgement.verdict == "fail"]
    if not wrong:
        return list(judgements)
    first, *others = wrong
    right = [
        _short(judgement.name) for judgement in judgements if judgement.verdict == "pass" and judgement.name != NAMES
    ]
    parts = [first.explanation]
    if others:
        parts.append(f"wrong further back: {_some([_short(other.name) for other in others])}")
    parts.append(f"right: {_right(right, len(others))}")
    explained = replace(first, explanation="; ".join(parts))
    return [explained if judgement is first else judgement for judgement in judgements]


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.").removeprefix(HF_PREFIX)


def _right(names: Sequence[str], others: int) -> str:
    if not names:
        return "none"
    return f"all other {len(names)}" if not others and len(names) > SHOWN else _some(names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
