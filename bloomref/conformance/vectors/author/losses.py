"""Vectors of the loss and its gradients."""

from dataclasses import replace
from typing import Any

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.oracle import gradient_budgets
from bloomref.conformance.oracle.budgets import MAX_NOISE
from bloomref.conformance.vectors.author.draft import TIER_NAMES, Answer, Draft, case_of
from bloomref.conformance.vectors.author.vector_models import MODELS


def loss() -> list[Draft]:
    left: dict[str, Any] = {
        "is_real": [[0, 0, 1, 1, 1, 1], [1] * 6],
        "token_ids": [[0, 0, 4, 2, 6, 1], [3, 3, 5, 0, 1, 2]],
    }
    hole: dict[str, Any] = {"is_real": [[1, 1, 1, 0, 1, 1]], "token_ids": [[4, 2, 6, 0, 1, 5]]}
    return [
        _loss("grd-plain", "small", "GRD-1 GRD-2 GRD-3 GRD-4", "loss and the gradient of every weight", batch=2, time=6),
        _loss("grd-untied-post-norm", "small_both", "GRD-3 GRD-4", "untied LM head, post-layernorm residual", batch=2, time=5),
        _loss("grd-left-padding", "small", "GRD-1 GRD-12", "padding counts for nothing", **left),
        _loss("grd-hole", "small", "GRD-1 GRD-12", "the token after a hole is not counted", **hole),
        _loss("grd-ignored-labels", "plain", "GRD-1", "labels of -100 are not counted", ignored=(0, 2), batch=2, time=5),
        _loss("grd-nothing-counted", "small", "GRD-2", "one token of each row: nothing to predict, loss 0", batch=2, time=1),
        _refused("grd-label-beyond", "a label outside the vocabulary", [[0, 1, 7]]),
        _refused("grd-label-negative", "-1 does not mark an ignored label", [[0, 1, -1]]),
    ]  # fmt: skip


def _loss(name: str, model: str, clauses: str, comment: str, ignored: tuple[int, ...] = (), **changes: Any) -> Draft:
    case = case_of(MODELS[model], name, **changes)
    labels = np.where(case.labels == IGNORED_LABEL, case.token_ids, case.labels)
    labels[:, list(ignored)] = IGNORED_LABEL
    case = replace(case, arrays=Arrays(case.params, case.token_ids, case.is_real, labels))
    inputs = {"token_ids": case.token_ids.tolist(), "padding_mask": case.is_real.astype(int).tolist(), "labels": labels.tolist()}  # fmt: skip
    answers = (("the specification's", lambda: _answer(case)),)
    return Draft(name, tuple(clauses.split()), comment, "loss_and_gradients", ("gradients",), model=f"models/{model}", arguments=inputs, answers=answers)  # fmt: skip


def _answer(case: Case) -> Answer:
    """Compute loss and gradients, each with one sigma a tier."""
    exact, spread = gradient_budgets.exact(case), gradient_budgets.spread(case)
    tensors: Answer = {}
    for name, value in exact.items():
        units = np.array([gradient_budgets.UNITS[tier.removesuffix("-scores")] for tier in TIER_NAMES])
        allowed = spread[name] * units / gradient_budgets.SIMULATED
        sigma = np.where(allowed <= MAX_NOISE * gradient_budgets.rms(value), allowed, np.inf)
        tensors[name] = (value.astype(np.float64), sigma)
    return tensors


def _refused(name: str, comment: str, labels: list[list[int]]) -> Draft:
    inputs = {"token_ids": [[0, 4, 2]], "padding_mask": [[1, 1, 1]], "labels": labels}
    return Draft(name, ("GRD-10",), comment, "loss_and_gradients", ("gradients",), "invalid", "InvalidInput", "models/small", arguments=inputs)  # fmt: skip
