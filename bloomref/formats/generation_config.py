"""Generation settings beside the weights: `generation_config.json`, or without it the keys of an old `config.json`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights
from bloomref.formats.files import read_json

FILE = "generation_config.json"


class StoredSettings(dict[str, Any]):
    """Settings by transformers' names, and the name of the file that they come from."""

    source = FILE


def read(folder: Path, keys: Collection[str], changes: Mapping[str, Any]) -> StoredSettings:
    """The settings of a folder. Clause: GEN-16.

    Like transformers, this reads `config.json` only where `generation_config.json` is missing; but a missing end token
    is always read from there.

    Args:
        folder: folder of a checkpoint.
        keys: keys of `config.json` that set generation.
        changes: arguments of the caller; those among `keys` replace what the files say.

    Raises:
        BadWeights: when a file is damaged.
    """
    config = read_json(folder / "config.json")
    settings = StoredSettings({key: config[key] for key in keys if config.get(key) is not None})
    settings.source = "config.json"
    if (folder / FILE).exists():
        settings = _read(folder / FILE, settings.get("eos_token_id"))
    settings |= {key: changes[key] for key in keys if key in changes}
    return settings


def _read(path: Path, end_ids: Any) -> StoredSettings:
    try:
        settings = StoredSettings(read_json(path))
    except BadWeights as error:
        raise BadWeights(f"{error}; repair or remove the file") from None
    if settings.get("eos_token_id") is None and end_ids is not None:
        settings["eos_token_id"] = end_ids
    return settings
