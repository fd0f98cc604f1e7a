"""Classification heads in the Hugging Face layout: read from a folder, and described in its config.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.errors import BadWeights, describe, invalid
from bloomref.formats.adapters import peft
from bloomref.formats.arrays import convert
from bloomref.formats.files import read_json
from bloomref.formats.layouts import hf, keras
from bloomref.formats.safetensors_io import DTYPES, FLOATS, SafetensorsFile
from bloomref.head_params import HEAD_KINDS, HeadKind, HeadParams
from bloomref.shapes import Array


def read_head(folder: Path, kind: HeadKind, hidden_dim: int, dtype: DType) -> HeadParams | None:
    """The head of a folder, rounded to `dtype`. None if the folder has no tensor of such a head.

    Raises:
        BadWeights: a tensor of the head is missing, of another shape or dtype, or not finite. Clause: HEA-1.
    """
    if hf.exists(folder):
        names = [name for name in hf.open_weights(folder).files if name.startswith(f"{kind.module}.")]
        if others := [name for name in names if name not in kind.keys]:
            hint = "remove the tensor from the file if the model was trained without it"
            raise BadWeights(describe(others[0], f"a head of {' and '.join(kind.keys)} alone", "another tensor", hint))
    arrays = stored_heads(folder, dtype, kind)
    return HeadParams.from_named(kind, hidden_dim, arrays) if arrays else None


def stored_heads(folder: Path, dtype: DType | None = None, *kinds: HeadKind) -> dict[str, Array]:
    """The tensors of the heads that a folder has, by name. A copy of the model keeps them.

    Args:
        dtype: dtype of the result; None: as stored.
        kinds: heads to read; none: all.

    Raises:
        BadWeights: a tensor is not of floating numbers, or not finite.
    """
    if not hf.exists(folder):
        return {}
    weights = hf.open_weights(folder)
    arrays: dict[str, Array] = {}
    for key in (key for kind in kinds or HEAD_KINDS for key in kind.keys if key in weights.files):
        file, name = weights.files[key]
        entry = file.entries[name]
        if entry.dtype not in FLOATS:
            raise BadWeights(describe(f"{key}: dtype", f"one of {', '.join(FLOATS)}", entry.dtype))
        arrays[key] = convert(file.pieces(name), entry.shape, dtype or DTYPES[entry.dtype], key)
    return arrays


def kind_of(folder: Path, adapters: Sequence[Path]) -> tuple[HeadKind, int] | None:
    """Kind and number of outputs of the one head that a model's folder or one of its adapters of PEFT has.

    Raises:
        InvalidInput: when there are heads of several kinds.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for adapter in adapters:
        if (adapter / peft.WEIGHTS).is_file():
            entries = SafetensorsFile(adapter / peft.WEIGHTS).entries
            shapes |= {name.removeprefix("base_model.model."): entry.shape for name, entry in entries.items()}
    shapes |= {key: array.shape for key, array in stored_heads(folder).items()}
    present = [kind for kind in HEAD_KINDS if len(shapes.get(kind.weight_key, ())) == 2]
    if len(present) > 1:
        raise invalid("--adapter", "heads of one kind", " and ".join(kind.module for kind in present))
    return (present[0], shapes[present[0].weight_key][0]) if present else None


def config_of_copy(folder: Path, config: BloomConfig) -> BloomConfig:
    """The config of a copy with the folder's heads: it names the class that config.json names."""
    facts = read_json(folder / hf.CONFIG)
    return config.replace(extra={**config.extra, "architectures": facts.get("architectures")}, **differences(folder))


def differences(folder: Path) -> dict[str, Any]:
    """Fields in which the config of a classifier differs from that of the language model that its folder is read as.

    Without a `pad_token_id` in config.json there is no padding token (HEA-4). An untied LM head need not be there, but
    the model stays one without a language model's head when it is saved.
    """
    facts = read_json(folder / hf.CONFIG)
    if keras.describes(facts):
        return {}
    no_padding = {"pad_token_id": None} if facts.get("pad_token_id") is None else {}
    return no_padding | ({"tie_word_embeddings": False} if facts.get("tie_word_embeddings") is False else {})


def described(extra: Mapping[str, Any], kind: HeadKind, labels: Sequence[str]) -> dict[str, Any]:
    """The keys of config.json by which transformers builds a model with this head.

    Args:
        extra: the config's other keys; their own labels stay as they are.
        labels: names by index, written where `extra` has none and their number is not 2, which transformers assumes.
    """
    facts: dict[str, Any] = {key: value for key, value in extra.items() if key != "num_labels"}
    facts["architectures"] = [kind.architecture]
    if facts.get("id2label") is None and len(labels) != 2:
        facts["id2label"] = {str(index): name for index, name in enumerate(labels)}
        facts["label2id"] = {name: index for index, name in enumerate(labels)}
    return facts
