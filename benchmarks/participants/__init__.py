"""Who takes part in `benchmarks.run`. Each module has a class `Model` (see `protocol.py`) and may have

convert(folder, dtype)      write the model in the participant's own format beside `folder/model`
unsupported(dtype)          why it cannot compute in that dtype here, or None
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Participant:
    """What is known of a participant without importing it.

    Args:
        module: below benchmarks.participants.
        packages: distributions whose versions are reported; the modules named in `imports` must be there.
        rows, context: the largest job that it is given.
    """

    module: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]
    rows: int = 16
    context: int = 1 << 20

    def can(self, rows: int, context: int) -> bool:
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
