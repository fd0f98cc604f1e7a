"""The installed backends. Listing imports none of them; a backend is loaded on first use."""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from pathlib import Path

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import BloomrefError, InvalidInput, Unsupported, invalid, represented
from bloomref.runtime import first_start, interface_checks
from bloomref.runtime.backend import API_VERSION, GROUP, Backend
from bloomref.validation import did_you_mean

REFERENCE = "numpy"
AUTO = "auto"
ON_HOST = (REFERENCE, "numba")
"""Backends whose arrays are in the memory of the machine."""
PREFERENCE = ("cupy", "numba", REFERENCE)
"""The order in which `auto` tries backends. Others are selected by name only."""
INSTALL = {"cupy": "pip install 'bloomref[cuda13]'", "numba": "pip install 'bloomref[numba]'"}
"""The command that installs a backend of this project with its dependencies."""
SEPARATOR = ":"
"""Separates the name of a backend and its argument: `cupy:1` is the backend cupy on device 1 (BKD-16)."""


def available() -> dict[str, EntryPoint]:
    """Name -> entry point of every installed backend except the reference. Imports none of them.

    Raises:
        Unsupported: when two packages claim one name.
    """
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        first = points.setdefault(point.name, point)
        if first.value != point.value or point.name == REFERENCE:
            raise Unsupported(
                f"backend {point.name!r}: expected one package to provide it, got {first.value} and {point.value}; "
                "uninstall one of them"
            )
    return points


def names() -> list[str]:
    """The reference first, then the installed backends."""
    return [REFERENCE, *available()]


@cache
def load(name: str) -> Backend:
    """The backend of that name, with or without an argument: `cupy`, `cupy:1`.

    Raises:
        InvalidInput: for an unknown name or argument; Unsupported: for a backend that is not installed, cannot be
        imported, or has another version of the interface; BadBackend: for one that breaks the interface.
    """
    if name == REFERENCE:
        from bloomref.runtime.numpy_backend import backend

        return backend()
    base, points = name.partition(SEPARATOR)[0], available()
    if base not in points and base in INSTALL:
        raise Unsupported(f"backend {name!r}: it is not installed; {INSTALL[base]}")
    if base not in points:
        raise _unknown(name)
    loaded = _call(name, points[base])
    version = getattr(loaded, "api_version", API_VERSION)
    if version != API_VERSION:
        raise Unsupported(f"backend {name!r}: expected api_version {API_VERSION}, got {version!r}; update its package")
    interface_checks.check_backend(name, loaded)
    return loaded


def is_loaded(name: str, backend: Backend) -> bool:
    """True if this name gives this backend."""
    try:
        return load(name) is backend
    except BloomrefError:
        return False


def _unknown(name: object) -> InvalidInput:
    known = [*names(), AUTO]
    return invalid(
        "backend",
        f"one of {', '.join(known)}",
        represented(name),
        did_you_mean(name, known) if isinstance(name, str) else "",
    )


def _call(name: str, point: EntryPoint) -> Backend:
    """Import the package of a backend and call its factory, with the argument in the name."""
    _, separator, argument = name.partition(SEPARATOR)
    try:
        factory = _factory(name, point)
        if not separator:
            return factory()
        if not signature(factory).parameters:
            raise invalid("backend", f"{point.name}, which takes no argument", represented(name))
        return factory(argument)
    except ImportError as error:
        raise Unsupported(f"backend {name!r}: {hidden(point) or error}; {_install(point)}") from error
    except BloomrefError:
        raise
    except Exception as error:
        raise interface_checks.raised(name, point.value, error) from error


def hidden(point: EntryPoint) -> str:
    """A sentence where another module of this name hides the package of a backend of this project; else empty."""
    top = point.module.partition(".")[0]
    ours = Path(__file__).parents[2] / top / "__init__.py"
    file = getattr(sys.modules.get(top), "__file__", None)
    if not ours.exists() or file is None or ours.samefile(file):
        return ""
    return f"{file} hides the package {top!r} of bloomref; rename or remove it"


def hidden_backends() -> list[str]:
    """A sentence for each backend whose package is hidden by another module, once it was tried."""
    both = {name: hidden(point) for name, point in available().items()}
    return [f"backend {name!r}: {sentence}" for name, sentence in both.items() if sentence]


def _factory(name: str, point: EntryPoint) -> Callable[..., Backend]:
    """The function that an entry point names. An AttributeError of its module is no missing function."""
    import_module(point.module)
    try:
        factory: Callable[..., Backend] = point.load()
    except AttributeError as error:
        raise Unsupported(f"backend {name!r}: {error}; {_install(point)}") from error
    return factory


def _install(point: EntryPoint) -> str:
    """The command that installs the package of an entry point, with its dependencies."""
    return INSTALL.get(point.name, f"pip install {point.dist.name if point.dist else point.module}")


def choose(name: object, config: BloomConfig, policy: DTypePolicy) -> Backend:
    """The backend for a model: the named one, or for `auto` the first of cupy, numba and numpy that can run it.

    `auto` leaves a backend whose kernels are not compiled yet for later, if the model is small: a process is started
    that compiles them, with a warning, and the next backend is taken.

    Raises:
        InvalidInput: no such backend.
        Unsupported: when the named backend cannot run this model here, with its reason. Nothing falls back silently.
        BadBackend: the named backend breaks the interface.
    """
    if not isinstance(name, str):
        raise _unknown(name)
    if name != AUTO:
        backend = load(name)
        reason = reason_of(backend, config, policy)
        if reason is not None:
            raise Unsupported(f"backend {name!r}: {reason}")
        return backend
    for candidate in PREFERENCE:
        if candidate in names() and why_unsupported(candidate, config, policy) is None:
            backend = load(candidate)
            if not first_start.is_left_for_later(backend, config, policy):
                return backend
            first_start.compile_beside(candidate, policy)
    raise AssertionError("the reference runs everything")


def why_unsupported(name: str, config: BloomConfig, policy: DTypePolicy) -> str | None:
    """The reason why the backend cannot run the model on this machine, or None if it can."""
    try:
        return reason_of(load(name), config, policy)
    except Unsupported as error:
        return str(error)


def reason_of(backend: Backend, config: BloomConfig, policy: DTypePolicy) -> str | None:
    """Ask a backend why it cannot run a model, and check its answer (BKD-6)."""
    try:
        reason = backend.unsupported(config, policy)
    except BloomrefError:
        raise
    except Exception as error:
        raise interface_checks.raised(backend.name, "unsupported", error) from error
    interface_checks.check_reason(backend.name, reason)
    return reason
