"""Every named intermediate of the model, without changing the model.

The model says `tap("attention.scores", scores)`; outside `observe` that is the identity. Inside, the observer gets the
full name (`layers.3.attention.scores`) and the array, and what it returns takes the array's place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bloomref.shapes import Array

Observer = Callable[[str, Array], Array]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_layer: ContextVar[str] = ContextVar("layer", default="")


def tap(name: str, value: Array) -> Array:
    observer = _observer.get()
    if observer is None:
        return value
    taken = observer(_layer.get() + name, value)
    return value if taken is value else taken.copy()  # the model works in place; a replacement stays the observer's


@contextmanager
def in_layer(index: int) -> Iterator[None]:
    """Names inside are prefixed with `layers.{index}.`"""
    token = _layer.set(f"layers.{index}.")
    try:
        yield
    finally:
        _layer.reset(token)


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer(name, array)` for every intermediate that is computed inside the block, in order (MOD-8, MOD-11).

    The array may be overwritten later: an observer copies what it keeps.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def record(keep: Callable[[str], bool] = lambda _: True) -> Iterator[dict[str, Array]]:
    """A dictionary that fills with copies of the intermediates whose name `keep` accepts."""
    seen: dict[str, Array] = {}

    def copy(name: str, value: Array) -> Array:
        if keep(name):
            seen[name] = value.copy()
        return value

    with observe(copy):
        yield seen
