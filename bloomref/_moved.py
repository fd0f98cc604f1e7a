"""Documented module paths of earlier versions:
importing one gives the module at its new path, and a DeprecationWarning.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "bloomref.conformance.adapters.backend": "bloomref.conformance.adapters.installed_backend",
    "bloomref.conformance.lab": "bloomref.conformance.model.instrumented",
    "bloomref.conformance.lora": "bloomref.conformance.lora_cases",
    "bloomref.formats.peft": "bloomref.formats.adapters.peft",
    "bloomref.formats.peft_config": "bloomref.formats.adapters.peft_config",
    "bloomref.runtime.options": "bloomref.generation.options",
}
"""Old path -> new path, since 0.2.0."""


class _Alias(Loader):
    """The module at the new path stands under both names: its classes are the same objects."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} has moved to {MOVED[spec.name]}", DeprecationWarning, stacklevel=2)
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


class MovedModules(MetaPathFinder):
    """Asked last, when no other finder knows a module."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Alias()) if fullname in MOVED else None


def install() -> None:
    """Add the finder to the interpreter's; once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
