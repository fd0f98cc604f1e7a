"""An adapter that is given as a model: as in transformers, its base model is loaded, with it. Clause: PRE-11."""

from pathlib import Path
from typing import NamedTuple

from bloomref.errors import InvalidInput, describe
from bloomref.formats.adapters import peft
from bloomref.formats.files import read_json
from bloomref.formats.layouts import hf, keras
from bloomref.formats.tokenizers.tokenizer_files import tokenizer_files
from bloomref.presets.preset_registry import ADAPTERS, PRESETS
from bloomref.presets.resolver import resolve


class Located(NamedTuple):
    """Local files of a model.

    Args:
        folder: the model's.
        adapter: folder of the adapter to load on it, or None.
    """

    folder: Path
    adapter: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder if it has a tokenizer, else the model's."""
        return self.adapter if self.adapter is not None and tokenizer_files(self.adapter) else self.folder


def locate(preset: str | Path, *, weights: bool = True, revision: str | None = None) -> Located:
    """Local files of a preset, or of an adapter and its base model.

    Args:
        preset: as for `resolve`; or a built-in adapter, or the folder of one of PEFT.
        weights, revision: as for `resolve`.

    Raises:
        InvalidInput: the adapter's base is unknown, or neither a folder nor a built-in preset; and as `resolve`.
    """
    if isinstance(preset, str) and preset in ADAPTERS and preset not in PRESETS:
        adapter = ADAPTERS[preset]
        return Located(resolve(adapter.base, weights=weights, revision=revision), adapter.folder)
    folder = resolve(preset, weights=weights, revision=revision)
    if not is_only_adapter(folder):
        return Located(folder)
    name, base = base_name(folder), known_base(folder)
    if base is None:
        raise InvalidInput(adapter_as_model(str(preset), name))
    model = resolve(base, weights=weights)
    if is_only_adapter(model):
        raise InvalidInput(adapter_as_model(str(preset), None))
    return Located(model, folder)


def is_only_adapter(folder: Path) -> bool:
    """True if the folder has an adapter of PEFT, and no weights of a model."""
    return peft.exists(folder) and not hf.exists(folder) and not keras.exists(folder)


def base_name(folder: Path) -> str | None:
    """The base model that adapter_config.json names, or None."""
    name = read_json(folder / peft.CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def adapter_as_model(adapter: str, base: str | None) -> str:
    """The message for an adapter that is given as the model, whose base cannot be found."""
    got = "an adapter" + (f" of {base}" if base else ", whose adapter_config.json names no base model")
    is_repository = base is not None and base.count("/") == 1 and not base.startswith((".", "~", "/"))
    model = f"hf://{base}" if is_repository else "BASE"
    return describe(adapter, "a model", got, f"give both: `--adapter {adapter} -m {model}`")


def known_base(folder: Path) -> str | Path | None:
    """The base model of an adapter's folder, as a folder or built-in name; None if it is neither.

    A relative path counts from here, or else from the adapter.
    """
    name = base_name(folder)
    if name is None:
        return None
    for path in (Path(name), folder / name):
        if path.is_dir():
            return path
    if name in PRESETS:
        return name
    return next((preset.name for preset in PRESETS.values() if preset.source == name), None)
