"""Every surface by name."""

from tools.faults import model_files
from tools.faults.trials import Surface

SURFACES: dict[str, Surface] = {surface.name: surface for surface in (*model_files.SURFACES,)}
