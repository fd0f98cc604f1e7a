"""Named intermediates of the model, observed or replaced from outside. Clauses: MOD-8, MOD-11.

The model says `tap("attention.scores", scores)`; outside `observe` that is the identity. Inside, the observer gets the
full name (`layers.3.attention.scores`) and the array, and its result takes the array's place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bloomref.shapes import Array

Observer = Callable[[str, Array], Array]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_layer: ContextVar[str] = ContextVar("layer", default="")


def tap(name: str, value: Array) -> Array:
    """The intermediate `value`, or the observer's replacement of it."""
    observer = _observer.get()
    return value if observer is None else observer(_layer.get() + name, value)


@contextmanager
def in_layer(index: int) -> Iterator[None]:
    """Prefix names inside the block with `layers.{index}.`"""
    token = _layer.set(f"layers.{index}.")
    try:
        yield
    finally:
        _layer.reset(token)


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer(name, array)` for every intermediate that is computed inside the block, in order.

    The array belongs to the model: an observer changes a copy.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def record(accept: Callable[[str], bool] = lambda _: True) -> Iterator[dict[str, Array]]:
    """Return a dictionary that fills with copies of the intermediates whose names `accept` accepts."""
    values: dict[str, Array] = {}

    def copy(name: str, value: Array) -> Array:
        if accept(name):
            values[name] = value.copy()
        return value

    with observe(copy):
        yield values
