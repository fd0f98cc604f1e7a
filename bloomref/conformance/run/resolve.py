"""Find the implementation that a command line names."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.process import TIMEOUT as TIMEOUT
from bloomref.conformance.adapters.program import Program
from bloomref.conformance.implementation import Capabilities, Implementation
from bloomref.errors import InvalidInput, Unsupported, invalid, visible


def implementation_of(
    implementation: str | None,
    backend: str | None,
    program: str | None,
    timeout: float = TIMEOUT,
    keep: Path | None = None,
) -> Implementation:
    """Return the implementation named by exactly one of the first three options.

    Args:
        implementation: `package.module:Name` of a class, a function without arguments, or an object.
        backend: name of a backend of bloomref.
        program: command line of a program that speaks the protocol of specs/97-program-protocol.md.
        timeout: seconds that a request to a program may take.
        keep: folder that keeps the requests to a program.

    Raises:
        InvalidInput: if none or several are given, no backend has the name, the program cannot be started, or the
            object is not an `Implementation`.
        Unsupported: if it cannot be imported.
        Failed: if the program breaks down.
    """
    names = [name for name in (implementation, backend, program) if name is not None]
    if len(names) != 1:
        raise invalid("what to test", "one of --implementation, --backend and --program", names or "none of them")
    if keep is not None and program is None:
        raise invalid("--keep", "a program, whose requests are kept", names[0], "name it with --program")
    if backend is not None:
        return named_backend(backend, f"--program {_shown(backend)}", "--implementation MODULE:NAME")
    if program is not None:
        return named_program(program, timeout, keep)
    return checked(names[0], named(names[0]))


def named_backend(name: str, program: str, implementation: str) -> Backend:
    """Return the backend of a name.

    Args:
        program, implementation: what the user would write to name a program, or a Python class.

    Raises:
        InvalidInput: no backend has this name.
    """
    backend = Backend(name)
    try:
        _ = backend.declaration
    except InvalidInput as error:
        raise InvalidInput(f"{error}; a program: {program}; a Python class: {implementation}") from error
    return backend


def _shown(name: str) -> str:
    """A name for a hint: a long one is cut."""
    return repr(visible(name, 120))


def named_program(command: str, timeout: float, keep: Path | None) -> Program:
    """Start a program.

    Raises:
        InvalidInput: it cannot be started.
        Failed: it breaks down.
    """
    try:
        return Program(command, timeout, keep)
    except InvalidInput as error:
        hint = f"a backend: --backend {command}" if command.isidentifier() else "a backend: --backend NAME"
        raise InvalidInput(f"{error}; {hint}; a Python class: --implementation MODULE:NAME") from error


def named(name: str) -> Any:
    """Import `package.module:Name`, and call it if it is a class or a function."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        hint = f"a backend: --backend {visible(name, 120)}; a program: --program {_shown(name)}"
        raise invalid("implementation", "package.module:Name", repr(name), hint)
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does; a console script does not look in the working directory
        sys.path.insert(0, here)
    try:
        target = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"implementation {name!r}: {error}") from error
    return target if hasattr(target, "load") and not isinstance(target, type) else target()


def checked(name: str, implementation: Any) -> Implementation:
    """Return the object if it is an `Implementation`.

    Raises:
        InvalidInput: if an attribute is missing, or `capabilities` is not a `Capabilities`.
    """
    missing = [item for item in ("name", "capabilities", "load", "versions") if not hasattr(implementation, item)]
    if missing:
        expected = "expected name, capabilities, load and versions (docs/conformance.md)"
        raise InvalidInput(f"implementation {name!r}: {expected}, got an object without {', '.join(missing)}")
    if not isinstance(implementation.capabilities, Capabilities):
        kind = type(implementation.capabilities).__name__
        raise invalid(f"implementation {name!r}: capabilities", "a Capabilities", kind)
    return implementation
