"""Finds what is to be tested, by the words of a command line."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bloomref.conformance.implementation import Adapter, Capabilities
from bloomref.errors import InvalidInput, Unsupported, invalid


def adapter(implementation: str | None, backend: str | None, program: str | None) -> Adapter:
    """The adapter that exactly one of the three names.

    Raises:
        InvalidInput: none or several are given, or what is named is no adapter; Unsupported: it cannot be imported.
    """
    given = [name for name in (implementation, backend, program) if name is not None]
    if len(given) != 1:
        raise invalid("what to test", "one of --implementation, --backend and --program", given or "none of them")
    if backend is not None:
        from bloomref.conformance.adapters.installed_backend import Backend

        return Backend(backend)
    if program is not None:
        from bloomref.conformance.adapters.program import Program

        return Program(program)
    return checked(given[0], named(given[0]))


def named(name: str) -> Any:
    """The object behind `package.module:Name`; called, if it is a class or a function."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise invalid("implementation", "package.module:Adapter", repr(name))
    here = str(Path.cwd())
    if here not in sys.path:  # as with python -m: a script does not look where it is run
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"implementation {name!r}: {error}") from error
    return found if hasattr(found, "load") and not isinstance(found, type) else found()


def checked(name: str, found: Any) -> Adapter:
    missing = [item for item in ("name", "capabilities", "load", "versions") if not hasattr(found, item)]
    if missing:
        raise InvalidInput(
            f"implementation {name!r}: expected an adapter (docs/conformance.md), got one without {', '.join(missing)}"
        )
    if not isinstance(found.capabilities, Capabilities):
        raise invalid(f"implementation {name!r}: capabilities", "a Capabilities", type(found.capabilities).__name__)
    return found
