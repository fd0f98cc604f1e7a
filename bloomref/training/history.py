"""Records of a run, one per step and one per evaluation. Equal runs have equal records."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe
from bloomref.formats.staging import staged_file
from bloomref.validation import is_integer


@dataclass(frozen=True)
class StepRecord:
    """Record of one update."""

    step: int
    """Number of the update, from 1."""
    loss: float
    """Mean loss before the update, in nats per token."""
    learning_rate: float
    gradient_norm: float
    """Global L2 norm of the gradients before clipping."""
    tokens: int
    """Number of tokens in the mean loss."""


@dataclass(frozen=True)
class Evaluation:
    """Result after `step` updates: the held-out loss in nats per token, or the value of the caller's function."""

    step: int
    loss: float


def _check(name: str, record: StepRecord | Evaluation, in_order: bool) -> None:
    numbers = [value for field, value in asdict(record).items() if field not in ("step", "tokens")]
    counts = [value for field, value in asdict(record).items() if field in ("step", "tokens")]
    if not in_order or not all(map(is_integer, counts)) or not all(isinstance(x, (int, float)) for x in numbers):
        raise BadWeights(describe(name, "its step's number, and numbers", record))


@dataclass
class History:
    """Loss curve of a run, in the order of the steps."""

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Training loss of each step, in nats per token."""
        return [record.loss for record in self.steps]

    @property
    def best(self) -> Evaluation | None:
        """Evaluation with the lowest loss, the first one of equals; None without evaluations."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible dictionary with `steps` and `evaluations`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "History":
        """Create a history from the result of `to_dict`.

        Raises:
            BadWeights: when `data` has another form.
        """
        try:
            steps, evaluations = (
                [StepRecord(**r) for r in data["steps"]],
                [Evaluation(**e) for e in data["evaluations"]],
            )
        except (KeyError, TypeError) as error:
            raise BadWeights(describe("history", "steps and evaluations", str(error))) from None
        for number, record in enumerate(steps, 1):
            _check(f"history: record {number}", record, record.step == number)
        for evaluation in evaluations:
            in_order = is_integer(evaluation.step) and 0 < evaluation.step <= len(steps)
            _check("history: evaluation", evaluation, in_order)
        return cls(steps, evaluations)

    def save(self, path: Path) -> None:
        """Write the history as JSON."""
        with staged_file(path) as stage:
            stage.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
