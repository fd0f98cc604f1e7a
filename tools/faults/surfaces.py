"""Every surface by name."""

from tools.faults import (
    broken_programs,
    hostile_arguments,
    hostile_options,
    keras_and_adapters,
    kit_files,
    model_files,
    talking_model,
    training_files,
)
from tools.faults.trials import Surface

_MODULES = (
    model_files,
    talking_model,
    keras_and_adapters,
    training_files,
    kit_files,
    broken_programs,
    hostile_options,
    hostile_arguments,
)
SURFACES: dict[str, Surface] = {surface.name: surface for module in _MODULES for surface in module.SURFACES}
