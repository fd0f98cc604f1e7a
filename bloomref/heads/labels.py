"""Labels of a classifier: their names, and the probabilities of logits. Clauses: HEA-6, HEA-7."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomref.errors import BadWeights, describe, invalid, represented
from bloomref.shapes import Array, Float

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Labels:
    """The labels that a config names.

    Args:
        names: N names, by index.
        problem_type: one of PROBLEM_TYPES, or None.
    """

    names: tuple[str, ...]
    problem_type: str | None = None

    @classmethod
    def read(cls, extra: Mapping[str, Any], count: int) -> "Labels":
        """The labels of a config.json, by its keys other than those of the model.

        Args:
            count: N, the number of the head's outputs.

        Raises:
            BadWeights: for another number of labels, names that are not 0 ... N-1, or an unknown problem type.
        """
        problem_type = extra.get("problem_type")
        if problem_type not in (None, *PROBLEM_TYPES):
            raise BadWeights(
                describe(
                    "config.json: problem_type", f"null or one of {', '.join(PROBLEM_TYPES)}", represented(problem_type)
                )
            )
        return cls(_names(extra.get("id2label"), count), problem_type)

    def probabilities(self, logits: Float[Array, "... N"]) -> Float[Array, "... N"]:
        """Scores of the labels in float64: softmax, sigmoid or, for a regression, the logits themselves (HEA-7)."""
        if self.problem_type == "regression":
            return logits.astype(np.float64)
        if self.problem_type == "multi_label_classification" or len(self.names) == 1:
            return sigmoid(logits)
        return softmax(logits)

    def best(self, scores: Float[Array, " N"]) -> list[dict[str, Any]]:
        """Every label with its score, the highest first; among equal ones the lowest index."""
        order = np.argsort(-scores, kind="stable")
        return [{"label": self.names[i], "score": float(scores[i])} for i in order]


def softmax(logits: Float[Array, "... N"]) -> Float[Array, "... N"]:
    """Softmax over the last axis, in float64."""
    values = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def sigmoid(logits: Float[Array, "... N"]) -> Float[Array, "... N"]:
    """1 / (1 + exp(-x)) of each number, in float64. Neither form of it overflows."""
    x = logits.astype(np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def number_of_labels(extra: Mapping[str, Any]) -> int | None:
    """N according to a config.json: the size of `id2label`, else `num_labels`; None if it has neither."""
    names, count = extra.get("id2label"), extra.get("num_labels")
    if isinstance(names, Mapping):
        return len(names)
    return count if isinstance(count, int) else None


def label_facts(names: object, num_labels: int | None, problem_type: str | None) -> dict[str, Any]:
    """The keys of config.json for a caller's `id2label`, number of labels and problem type. None is left out.

    Raises:
        InvalidInput: names that are not those of 0 ... N-1, another number of them, or an unknown problem type.
    """
    facts: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    if names is not None:
        if not isinstance(names, Mapping) or not names:
            raise invalid("id2label", "a dictionary such as {0: 'negative', 1: 'positive'}", names)
        if num_labels not in (None, len(names)):
            raise invalid("num_labels", f"{len(names)}, the size of id2label, or None", num_labels)
        try:
            listed = _names(names, len(names))
        except BadWeights as error:
            raise invalid("id2label", "the names of 0 ... N-1", names) from error
        facts["id2label"] = {str(index): name for index, name in enumerate(listed)}
        facts["label2id"] = {name: index for index, name in enumerate(listed)}
    if problem_type is not None:
        if not isinstance(problem_type, str) or problem_type not in PROBLEM_TYPES:
            raise invalid("problem_type", f"None or one of {', '.join(PROBLEM_TYPES)}", represented(problem_type))
        facts["problem_type"] = problem_type
    return facts


def _names(names: object, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    expected = f"an object with a name for each of 0 ... {count - 1}, the head's outputs"
    if not isinstance(names, Mapping) or {str(key) for key in names} != {str(index) for index in range(count)}:
        raise BadWeights(describe("config.json: id2label", expected, names))
    by_index = {str(key): str(name) for key, name in names.items()}
    return tuple(by_index[str(index)] for index in range(count))
