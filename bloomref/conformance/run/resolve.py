"""Find the implementation that a command line names."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bloomref.conformance.implementation import Capabilities, Implementation
from bloomref.errors import InvalidInput, Unsupported, invalid


def implementation_of(implementation: str | None, backend: str | None, program: str | None) -> Implementation:
    """Return the implementation named by exactly one of the options.

    Args:
        implementation: `package.module:Name` of a class, a function without arguments, or an object.
        backend: name of a backend of bloomref.
        program: command line of a program that speaks the protocol of specs/97-program-protocol.md.

    Raises:
        InvalidInput: if none or several are given, or the object is not an `Implementation`.
        Unsupported: if it cannot be imported.
    """
    names = [name for name in (implementation, backend, program) if name is not None]
    if len(names) != 1:
        raise invalid("what to test", "one of --implementation, --backend and --program", names or "none of them")
    if backend is not None:
        from bloomref.conformance.adapters.installed_backend import Backend

        return Backend(backend)
    if program is not None:
        from bloomref.conformance.adapters.program import Program

        return Program(program)
    return checked(names[0], named(names[0]))


def named(name: str) -> Any:
    """Import `package.module:Name`, and call it if it is a class or a function."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise invalid("implementation", "package.module:Name", repr(name))
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
