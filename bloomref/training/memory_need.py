"""Memory that a training needs at least, from sizes alone: nothing is allocated. Clause: TRN-23."""

from collections.abc import Mapping
from dataclasses import dataclass

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype
from bloomref.machine_memory import check_memory
from bloomref.params import count_params
from bloomref.shapes import Array
from bloomref.training.packing import Batch
from bloomref.training.settings import Settings

_LOGIT_BYTES = 2**28  # of the logits that exist at a time


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the host.

    Args:
        weights: of the model, and of what is trained beside it.
        gradients: of the trained variables; twice, with several passes per update.
        optimizer: two moments of each trained variable, and the best weights so far with `keep_best`.
        activations: the input of every block, and the largest arrays of one block or of the head. Blocks run again in
            the backward pass (GRD-7), so no more is stored.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def parts(self) -> str:
        """The parts as a text: "weights 2.2 GB, gradients ..."."""
        sizes = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations")}
        return ", ".join(f"{name} {shown(size)}" for name, size in sizes.items())

    def check(self) -> None:
        """Refuse a training that cannot fit into this machine.

        Raises:
            Unsupported: with the size and its parts.
        """
        check_memory("training", self.total, f"{self.parts()}: a smaller batch or context, or an adapter, needs less")


def shown(size: int) -> str:
    """A number of bytes as a text."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def of_training(
    config: BloomConfig,
    policy: DTypePolicy,
    variables: Mapping[str, Array],
    settings: Settings,
    batch: Batch,
) -> MemoryNeed:
    """The memory of a training.

    Args:
        config, policy: of the model.
        variables: name -> array; what is trained.
        settings: of the run.
        batch: one of its batches.
    """
    count = count_params(config)
    trained = sum(array.nbytes for array in variables.values())
    stored = count * policy.variable_dtype.itemsize
    beside = trained if sum(array.size for array in variables.values()) < count else 0
    computed = count * policy.compute_dtype.itemsize if policy.compute_dtype != policy.variable_dtype else 0
    return MemoryNeed(
        weights=stored + beside + computed,
        gradients=trained * (2 if settings.accumulate > 1 else 1),
        optimizer=trained * (3 if settings.keep_best else 2),
        activations=_activations(config, policy, batch),
    )


def _activations(config: BloomConfig, policy: DTypePolicy, batch: Batch) -> int:
    rows, time = batch.token_ids.shape
    positions, itemsize = rows * time, accumulation_dtype(policy.compute_dtype).itemsize
    counted = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    inputs = 2 * config.num_layers * positions * config.hidden_dim
    scores = 2 * rows * config.num_heads * time * time  # attention weights and their gradient
    inner = 2 * positions * config.intermediate_dim
    logits = min(counted * config.vocabulary_size, _LOGIT_BYTES // itemsize)
    return itemsize * (inputs + max(scores, inner, logits))
