"""The estimate of memory, within bounds that follow from the sizes of a model."""

from collections.abc import Iterable
from math import prod

from bloomref.config import BloomConfig
from bloomref.conformance.backends.tested import Tested, condition
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Subject
from bloomref.params import LM_HEAD, count_params
from bloomref.runtime.backend import Memory, SupportsMemoryEstimate

BATCH, LENGTH = 3, 256
CONFIG = BloomConfig(vocabulary_size=4000, num_layers=3, num_heads=4, hidden_dim=256, intermediate_dim=1024)
WEIGHTS = 4.0
"""Largest factor for weights: packed once more for the head, and 16 bits stored as 32."""
CACHE = 2.5
"""Largest factor for a cache: 16 bits stored as 32, and capacities in whole tiles."""
WORKING = 4.0
"""Largest factor for temporaries over a sum of generous terms."""
SLACK = 2**25
"""Bytes of buffers that do not depend on the model."""


def memory(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge the estimates for a model of some megabytes, and their growth with layers, rows and positions."""
    tested = Tested.of(subject, case)
    for tied in (True, False):
        config = CONFIG.replace(tie_word_embeddings=tied)
        deep = config.replace(num_layers=2 * config.num_layers)
        one, two = (_ask(tested, size, BATCH, LENGTH) for size in (config, deep))
        yield from _within("weights", one.weights, _parameters(tested, config), WEIGHTS)
        layers = _parameters(tested, deep) - _parameters(tested, config)
        yield from _within("weights of three more layers", two.weights - one.weights, layers, WEIGHTS)
        yield from _within("cache", one.cache, _cache(tested, config, BATCH, LENGTH), CACHE)
        more = _ask(tested, config, 2 * BATCH, 2 * LENGTH)
        growth = _cache(tested, config, 2 * BATCH, 2 * LENGTH) - _cache(tested, config, BATCH, LENGTH)
        yield from _within("cache of twice the rows and positions", more.cache - one.cache, growth, CACHE)
        logits = BATCH * config.vocabulary_size * tested.wide.itemsize
        yield _least("working", one.working, logits, "the logits")
        yield _most("working", one.working, WORKING * _temporaries(tested, config, BATCH, LENGTH) + SLACK)


def _ask(tested: Tested, config: BloomConfig, batch: int, length: int) -> Memory:
    return tested.backend.memory(config, tested.policy, batch, length)


def _parameters(tested: Tested, config: BloomConfig) -> int:
    return count_params(config) * tested.compute.itemsize


def _cache(tested: Tested, config: BloomConfig, batch: int, length: int) -> int:
    """Bytes of keys and values in the compute dtype."""
    return 2 * config.num_layers * batch * length * config.hidden_dim * tested.compute.itemsize


def _temporaries(tested: Tested, config: BloomConfig, batch: int, length: int) -> int:
    """Bytes of one matrix, of the logits, of scores, and of some activations, all in the accumulation dtype."""
    row = config.vocabulary_size + config.num_heads * length + 8 * config.hidden_dim + 2 * config.intermediate_dim
    return (prod(LM_HEAD.shape(config)) + batch * row) * tested.wide.itemsize


def _within(what: str, size: int, least: int, factor: float) -> Iterable[Judgement]:
    yield _least(what, size, least, "the numbers alone")
    yield _most(what, size, factor * least + SLACK)


def _least(what: str, size: int, least: int, needed_by: str) -> Judgement:
    return condition(what, size >= least, f"memory: {what}: {size} bytes are reported; {needed_by} need {least}")


def _most(what: str, size: int, most: float) -> Judgement:
    return condition(what, size <= most, f"memory: {what}: {size} bytes are reported; expected at most {most:.0f}")


def silent(subject: Subject) -> str | None:
    """Return why memory is not asked, or None."""
    backend = getattr(subject.implementation, "runs_on", None)
    if backend is None or not isinstance(backend, SupportsMemoryEstimate):
        return f"{subject.implementation.name} has no method memory"
    return None
