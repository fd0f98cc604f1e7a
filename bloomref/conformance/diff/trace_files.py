"""Files that `bloomref trace -o` wrote, as operands: intermediates, model and token ids."""

from pathlib import Path

from bloomref.errors import BadWeights
from bloomref.shapes import Array


def is_trace(name: str) -> bool:
    """True for the name of a trace file."""
    return name.endswith(".safetensors")


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a trace file; "model" and "token_ids" are always there.

    Raises:
        BadWeights: the file is damaged, or not a trace.
    """
    from safetensors import SafetensorError, safe_open

    from bloomref.formats.files import regular_file

    try:
        with safe_open(regular_file(path), framework="np") as file:
            fields: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadWeights(f"{path.name}: expected a file that `bloomref trace` wrote; {error}") from error
    if not {"model", "token_ids"} <= fields.keys():
        raise BadWeights(
            f"{path.name}: expected a file that `bloomref trace` wrote, got one without model and token_ids"
        )
    return fields


def traced_dtype(path: Path) -> str:
    """Compute dtype of a trace: that of an intermediate which is rounded to it; float32 if the file has none."""
    rounded = ("_block", "embedding_norm", "final_norm")
    return next((array.dtype.name for name, array in arrays(path).items() if name.endswith(rounded)), "float32")


def arrays(path: Path) -> dict[str, Array]:
    """Intermediates of a trace file by name."""
    from bloomref.formats.safetensors_io import SafetensorsFile

    file = SafetensorsFile(path)
    return {name: file.view(name) for name in file.entries}
