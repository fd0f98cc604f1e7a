"""How many bytes a model needs, before any of them is allocated."""

from dataclasses import dataclass
from math import prod

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype
from bloomref.params import LM_HEAD, count_params


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights, of the key/value cache, and of the largest temporaries of one decoding step."""

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working


def numpy_memory(config: BloomConfig, policy: DTypePolicy, batch: int = 1, length: int = 2048) -> Memory:
    """What the NumPy reference needs to generate `length` positions for `batch` rows under a dtype policy.

    A mixed policy keeps its weights twice (variable and compute dtype). Where the compute dtype is narrower than the
    accumulation dtype, the step widens one matrix at a time; the head is the largest.
    """
    compute, wide = policy.compute_dtype, accumulation_dtype(policy.compute_dtype)
    copies = {policy.variable_dtype, compute}
    weights = count_params(config) * sum(dtype.itemsize for dtype in copies)
    cache = 2 * config.num_layers * batch * length * config.hidden_dim * compute.itemsize
    widened = 0 if wide == compute else prod(LM_HEAD.shape(config)) * wide.itemsize
    return Memory(weights, cache, widened + batch * config.vocabulary_size * wide.itemsize)
