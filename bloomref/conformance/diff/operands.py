"""Operands of `bloomref diff`: resolve a name of the command line, and run the implementation on a case."""

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.adapters.common import Failed
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.adapters.program import Program
from bloomref.conformance.cases import Case
from bloomref.conformance.diff import trace_files
from bloomref.conformance.implementation import Implementation
from bloomref.conformance.mistakes import CATALOGUE, get_mistake
from bloomref.conformance.oracle.precision import Tier, tier_of
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.run import resolve
from bloomref.conformance.subject import Raised, Subject
from bloomref.errors import BloomrefError, Unsupported, invalid
from bloomref.runtime import registry
from bloomref.shapes import Array

ORACLE = "oracle"
_settings: ContextVar[tuple[float, Path | None]] = ContextVar("settings of programs", default=(resolve.TIMEOUT, None))
PEERS = {
    "transformers": "transformers:Transformers",
    "keras_hub": "keras_hub:KerasHub",
    "llama_cpp": "llama_cpp:LlamaCpp",
    "ctranslate2": "ctranslate2:CTranslate2",
}
"""Short names of the implementations in `conformance.adapters`."""


@dataclass(frozen=True, eq=False)
class Operand:
    """The outputs of one implementation for a case.

    Args:
        name: as on the command line.
        values: named intermediates (MOD-8), as many as the implementation shows.
        tier: the precision in which it computed; None for the oracle, whose error is negligible.
        capacity: of the cache that it computed over; 0: as large as the input, or no cache.
        cuts: where its calls over the cache began; None: at the cuts of the case.
    """

    name: str
    values: Mapping[str, Array] = field(repr=False)
    tier: Tier | None
    capacity: int = 0
    cuts: tuple[int, ...] | None = None

    def run_of(self, case: Case) -> tuple[tuple[int, ...], int]:
        """Cuts and capacity of its calls."""
        return case.cuts if self.cuts is None else self.cuts, self.capacity


def operand(name: str, dtype: str, case: Case, capacity: int = 0) -> Operand:
    """Run the implementation with this name.

    Args:
        name: "oracle", a trace file, or an implementation, optionally followed by "@dtype".
        dtype: the dtype of an implementation without "@dtype".
        capacity: of the cache, as in `outputs`.

    Raises:
        Failed: the implementation raised.
        Unsupported: the implementation is not available, or lacks what the case needs.
        InvalidInput: no implementation has this name.
    """
    if name == ORACLE:
        return Operand(name, truth(case).values, None)
    if trace_files.is_trace(name):
        return Operand(Path(name).name, trace_files.arrays(Path(name)), tier_of(dtype))
    subject = subject_of(name, dtype, case)
    with as_failed(name):
        return Operand(name, outputs(subject, case, capacity), subject.tier, capacity)


def subject_of(name: str, dtype: str, case: Case) -> Subject:
    """Return the implementation with this name, with the model of a case loaded.

    Raises:
        Failed: the implementation raised.
        Unsupported: the implementation is not available, or lacks what the case needs.
        InvalidInput: no implementation has this name.
    """
    bare, dtype = split_dtype(name, dtype)
    subject = Subject(implementation(bare), dtype)
    reason = subject.missing(case)
    if dtype not in subject.implementation.capabilities.dtypes:
        reason = f"{bare}: it computes in {', '.join(subject.implementation.capabilities.dtypes)}, not in {dtype}"
    if reason:
        raise Unsupported(reason)
    try:
        subject.model(case)
    except BloomrefError:  # its message needs no name
        raise
    except Exception as error:
        raise Failed(f"{name}: loading the model raised {type(error).__name__}: {error}") from error
    return subject


@contextmanager
def as_failed(name: str) -> Iterator[None]:
    """Convert an exception of the implementation to `Failed`, whose message names it."""
    try:
        yield
    except Raised as error:
        raise Failed(f"{name}: {error}") from error


@contextmanager
def program_settings(timeout: float | None, keep: Path | None) -> Iterator[None]:
    """Context manager: inside, programs start with this time limit (None: the usual one) and folder of requests."""
    token = _settings.set((timeout or resolve.TIMEOUT, keep))
    try:
        yield
    finally:
        _settings.reset(token)


def split_dtype(name: str, dtype: str) -> tuple[str, str]:
    """Split `numba@bfloat16` into name and dtype; a name without "@" gets `dtype`."""
    bare, _, own = name.partition("@")
    return bare, own or dtype


def implementation(name: str) -> Implementation:
    """Resolve a name: a peer, `program:COMMAND`, `module:Name`, `mistake:NAME`, or a backend."""
    kind, _, rest = name.partition(":")
    if kind == "mistake":
        return InstrumentedImplementation(get_mistake(rest).model)
    if kind == "program":
        return resolve.implementation_of(None, None, rest, *_settings.get())
    if name in PEERS:
        name = f"bloomref.conformance.adapters.{PEERS[name]}"
    if ":" in name and kind not in registry.names():
        return resolve.implementation_of(name, None, None)
    if kind not in registry.names() and looks_like_a_command(name):
        raise invalid("operand", "the name of an implementation", repr(name), f"a program is named 'program:{name}'")
    return resolve.implementation_of(None, name, None)


def looks_like_a_command(name: str) -> bool:
    """True for a path, for words with arguments, and for a program that is installed."""
    return any(mark in name for mark in ("/", " ", "\\")) or shutil.which(name) is not None


def name_of(implementation: Implementation) -> str:
    """Return the name by which `implementation` would find this one; `module:Name` stands for one that has none."""
    if isinstance(implementation, Program):
        return f"program:{shlex.join(implementation.process.command)}"
    if isinstance(implementation, Backend):
        return implementation.name
    if isinstance(implementation, InstrumentedImplementation):
        known = (mistake.name for mistake in CATALOGUE if mistake.model is implementation.model_class)
        return f"mistake:{next(known, 'NAME')}"
    cls = type(implementation)
    path = f"{cls.__module__}:{cls.__qualname__}"
    short = {f"bloomref.conformance.adapters.{name}": short for short, name in PEERS.items()}
    return short.get(path, path if path.count(".<locals>") == 0 and cls.__module__ != "__main__" else "module:Name")


def outputs(subject: Subject, case: Case, capacity: int = 0) -> dict[str, Array]:
    """Return every intermediate that the implementation shows: those of one call, or of calls over a cache.

    Args:
        capacity: of the cache; 0 without cuts: one call without a cache.

    Raises:
        Raised: the implementation raised; Unsupported: it cannot run the case, or has no cache.
    """
    over_cache = (case.cuts, max(capacity, case.time)) if case.cuts or capacity else ()
    values = traced(subject, case, over_cache)
    if over_cache and "logits" not in values and not subject.offers(case, "in_pieces"):
        raise Unsupported(f"{subject.implementation.name}: it has no method in_pieces; leave out --cuts")
    return results(subject, case, over_cache) | values


def traced(subject: Subject, case: Case, over_cache: tuple[Any, ...] = ()) -> dict[str, Array]:
    """Return the intermediates of the implementation's trace; none if it offers none.

    Args:
        over_cache: cuts and capacity of calls over a cache; nothing: one call.
    """
    method = "trace_in_pieces" if over_cache else "trace"
    if not subject.offers(case, method):
        return {}
    values = subject.ask(case, method, case.token_ids, case.is_real, *over_cache)
    return {name: np.asarray(value) for name, value in values.items() if name in truth(case).values}


def results(subject: Subject, case: Case, over_cache: tuple[Any, ...] = ()) -> dict[str, Array]:
    """Return the logits, and in one call the final hidden states if the implementation shows them."""
    methods = {"logits": "in_pieces"} if over_cache else {"final_norm": "hidden", "logits": "logits"}
    return {
        name: np.asarray(subject.ask(case, method, case.token_ids, case.is_real, *over_cache))
        for name, method in methods.items()
        if subject.offers(case, method)
    }
