"""The properties of a correct backend, in addition to those of every implementation."""

from bloomref.conformance.backends import cached_calls, host_arrays, memory_estimate, single_blocks
from bloomref.conformance.backends.tested import is_backend
from bloomref.conformance.backends.wide_cases import wide_cases
from bloomref.conformance.implementation import Implementation
from bloomref.conformance.properties import PROPERTIES, RARELY, Property
from bloomref.conformance.subject import NotAsked, Subject

ONCE = 20
"""The `share` of a property that does not depend on the case."""
NEEDS = ("prepared",)


def _rounds_nothing(subject: Subject) -> NotAsked | None:
    reason = "float64 holds every weight: nothing is rounded"
    return NotAsked(reason, bounds=False) if subject.dtype == "float64" else None


def _changes_bits(subject: Subject) -> str | None:
    able = subject.implementation.capabilities
    return None if able.repeatable else f"{subject.implementation.name} declares that it is not repeatable"


_ALL = (
    Property(
        "blocks",
        "each block alone equals the oracle's on given hidden states within the rounding budget",
        ("BKD-24", "BKD-12", "NUM-2"),
        single_blocks.blocks,
        needs=NEEDS,
        strategy=wide_cases,
    ),
    Property(
        "rounding",
        "weights are rounded once to the compute dtype, and hidden states are numbers of it",
        ("NUM-1", "NUM-2"),
        host_arrays.rounding,
        needs=NEEDS,
        strategy=wide_cases,
        share=RARELY,
        unasked=lambda subject: _rounds_nothing(subject) or _changes_bits(subject),
        fixed=False,
    ),
    Property(
        "bits",
        "the bits of a position depend on the positions before it only",
        ("BKD-22",),
        single_blocks.bits,
        needs=NEEDS,
        strategy=wide_cases,
        unasked=single_blocks.unequal,
        fixed=False,
    ),
    Property(
        "state",
        "calls that are repeated, overwritten or interleaved, and other models, change no result",
        ("BKD-1", "BKD-2", "KVC-4"),
        cached_calls.state,
        needs=NEEDS,
        strategy=wide_cases,
        fixed=False,
    ),
    Property(
        "select",
        "a copy of a cache has the selected rows in their order, and is independent",
        ("BKD-4",),
        cached_calls.select,
        needs=NEEDS,
        strategy=wide_cases,
        time=2,
        share=RARELY,
        fixed=False,
    ),
    Property(
        "host",
        "arrays on the host have the right shapes and dtypes, empty ones too, and finite numbers",
        ("BKD-13", "MOD-1"),
        host_arrays.host,
        needs=NEEDS,
        strategy=wide_cases,
        share=RARELY,
        fixed=False,
    ),
    Property(
        "arguments",
        "no call changes its arguments or what an earlier call returned, and logits are new arrays",
        ("BKD-3", "BKD-21"),
        host_arrays.arguments,
        needs=NEEDS,
        strategy=wide_cases,
        share=RARELY,
        fixed=False,
    ),
    Property(
        "memory",
        "the estimate of memory is between the bytes of the numbers and a few times as much",
        ("BKD-15",),
        memory_estimate.memory,
        needs=NEEDS,
        share=ONCE,
        unasked=memory_estimate.silent,
        fixed=False,
    ),
)
BACKEND_PROPERTIES: dict[str, Property] = {prop.name: prop for prop in _ALL}
"""Properties of backends by name, in the order of a report."""


def properties_of(implementation: Implementation) -> dict[str, Property]:
    """The properties that are asked of an implementation, by name, in the order of a report."""
    return PROPERTIES | BACKEND_PROPERTIES if is_backend(implementation) else PROPERTIES
