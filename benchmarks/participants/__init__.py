"""Participants of `benchmarks.run`. Each module has a class `Model` (see `protocol.py`), and optionally:

convert(folder, dtype)      write the model in the participant's format into `folder`, next to `folder/model`
unsupported(dtype)          reason why the participant cannot compute in this dtype on this machine, or None
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Participant:
    """Facts about a participant that need no import of it.

    Args:
        module: its module in benchmarks.participants.
        imports: modules that must be installed.
        packages: distributions whose versions are reported.
        rows, context: the largest batch and the longest prompt that it is timed with.
    """

    module: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]
    rows: int = 16
    context: int = 1 << 20

    def can(self, rows: int, context: int) -> bool:
        """True if a job of this size is not too large for it."""
        return rows <= self.rows and context <= self.context


PARTICIPANTS = {
    "numba": Participant("backends", ("numba",), ("numba",)),
    "numpy": Participant("backends", ("numpy",), ("numpy",), rows=1, context=512),
    "transformers": Participant("transformers_torch", ("torch", "transformers"), ("torch", "transformers")),
    "llama.cpp": Participant("llama", ("llama_cpp", "gguf"), ("llama_cpp_python", "gguf")),
    "ctranslate2": Participant("ctranslate", ("ctranslate2", "torch", "transformers"), ("ctranslate2",)),
    "keras": Participant("keras_jax", ("keras", "keras_hub", "jax", "h5py"), ("keras", "keras-hub", "jax")),
    "openvino": Participant("openvino_optimum", ("openvino", "optimum.intel"), ("openvino", "optimum-intel")),
}
