"""The heads on top of a BLOOM that classify: their names in checkpoints and transformers, and their weights.

| class in transformers | weight (N, D) | bias (N,) | labels N |
|---|---|---|---|
| BloomForSequenceClassification | `score.weight` | none | of the config |
| BloomForTokenClassification | `classifier.weight` | `classifier.bias` | of the config |
| BloomForQuestionAnswering | `qa_outputs.weight` | `qa_outputs.bias` | 2: start and end of the answer |

The names never have the prefix `transformer.` (HEA-1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import FLOAT32, DType, cast
from bloomref.errors import BadWeights, describe
from bloomref.machine_memory import check_memory
from bloomref.shapes import Array, Float


@dataclass(frozen=True)
class HeadKind:
    """One row of the table.

    Args:
        architecture: name of the class in transformers, and in `architectures` of config.json.
        module: the head's name in a checkpoint.
        task_type: PEFT's name of the task.
        num_labels: N, if every head of this kind has the same; None: the config decides.
    """

    architecture: str
    module: str
    task_type: str
    has_bias: bool
    num_labels: int | None = None

    @property
    def weight_key(self) -> str:
        return f"{self.module}.weight"

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the head's tensors in a checkpoint."""
        return (self.weight_key, f"{self.module}.bias") if self.has_bias else (self.weight_key,)


SEQUENCE_HEAD = HeadKind("BloomForSequenceClassification", "score", "SEQ_CLS", has_bias=False)
TOKEN_HEAD = HeadKind("BloomForTokenClassification", "classifier", "TOKEN_CLS", has_bias=True)
QUESTION_HEAD = HeadKind("BloomForQuestionAnswering", "qa_outputs", "QUESTION_ANS", has_bias=True, num_labels=2)
HEAD_KINDS = (SEQUENCE_HEAD, TOKEN_HEAD, QUESTION_HEAD)


@dataclass(frozen=True, eq=False)
class HeadParams:
    """The weights of one head, of one dtype. `bias` is None where the kind has none."""

    weight: Float[Array, "N D"]
    bias: Float[Array, " N"] | None = None

    @property
    def num_labels(self) -> int:
        """N, the number of outputs."""
        return self.weight.shape[0]

    @classmethod
    def from_named(cls, kind: HeadKind, hidden_dim: int, arrays: Mapping[str, Array]) -> "HeadParams":
        """Assemble from arrays under their names in a checkpoint.

        Raises:
            BadWeights: a name is missing, or an array has a wrong shape (HEA-1).
        """
        for key in kind.keys:
            if key not in arrays:
                raise BadWeights(f"{key}: expected the head of a {kind.architecture}, got none")
        weight, *rest = (arrays[key] for key in kind.keys)
        rows = kind.num_labels or (weight.shape[0] if weight.ndim else 0)
        for key, shape in zip(kind.keys, ((max(rows, 1), hidden_dim), (max(rows, 1),)), strict=False):
            if arrays[key].shape != shape:
                raise BadWeights(describe(f"{key}: shape", str(shape), str(arrays[key].shape)))
        return cls(weight, *rest)

    def named(self, kind: HeadKind) -> dict[str, Array]:
        """The arrays under their names in a checkpoint."""
        arrays = (self.weight, self.bias) if self.bias is not None else (self.weight,)
        return dict(zip(kind.keys, arrays, strict=True))

    def map(self, change: Callable[[Array], Array]) -> "HeadParams":
        """A copy with `change` applied to every array."""
        return HeadParams(change(self.weight), None if self.bias is None else change(self.bias))


def init_head(kind: HeadKind, num_labels: int, config: BloomConfig, seed: int, dtype: DType = FLOAT32) -> HeadParams:
    """A fresh head: weight normal with standard deviation `initializer_range`, bias 0; seeded."""
    check_memory("the head", 8 * num_labels * config.hidden_dim)
    values = config.initializer_range * np.random.default_rng(seed).standard_normal((num_labels, config.hidden_dim))
    return HeadParams(cast(values, dtype), np.zeros(num_labels, dtype) if kind.has_bias else None)
