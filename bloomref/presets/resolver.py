"""Resolution of the handle of a preset or adapter to a local path. Clauses: PRE-4, PRE-5, PRE-9."""

import re
from collections.abc import Callable
from pathlib import Path

from bloomref.argument_kinds import as_path
from bloomref.errors import BloomrefError, InvalidInput, Unsupported, invalid
from bloomref.formats.adapters import peft
from bloomref.formats.adapters.keras_lora import SUFFIX as KERAS_ADAPTER
from bloomref.formats.folder_contents import models_below
from bloomref.formats.layouts import hf, keras
from bloomref.formats.tokenizers.tokenizer_files import KERAS_ASSETS
from bloomref.presets import hub
from bloomref.presets.missing_folders import file_as_adapter, file_as_model, is_path, no_such_folder
from bloomref.presets.preset_registry import ADAPTERS, PRESETS, Preset
from bloomref.validation import did_you_mean

_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_KAGGLE_SMALL = ("config.json", "tokenizer.json", *(str(KERAS_ASSETS / n) for n in ("vocabulary.json", "merges.txt")))


def resolve(preset: str | Path, *, weights: bool = True, revision: str | None = None) -> Path:
    """Return the local folder of a preset. Missing files are downloaded.

    Args:
        preset: a built-in name; `hf://user/repo` or `hf://user/repo@revision`;
            `kaggle://user/model/framework/variation`, optionally with `/version`; or the path of a folder. A `Path` is
            always a folder.
        weights: False: download config and tokenizer only.
        revision: branch, tag or commit of a hub repository; None: the revision in `preset`, of the built-in preset, or
            "main".

    Raises:
        InvalidInput: the preset does not exist, or the revision in `preset` differs from `revision`.
        Unsupported: no network, no permission, or an optional package is not installed.
        BadWeights: a downloaded file is damaged, or the repository has no readable weights.
    """
    if not isinstance(preset, str | Path) or not str(preset):
        raise invalid("preset", "a preset's name, hf://user/repo, kaggle://..., or a folder", preset)
    name = str(preset)
    if name.startswith("hf://"):
        return hub.download(*_repository("preset", name, revision), weights=weights)
    built_in = None if isinstance(preset, Path) else PRESETS.get(name)
    if revision is not None and (built_in is None or built_in.folder):
        raise invalid("revision", "None for a preset that is not on the Hugging Face hub", revision)
    if name.startswith("kaggle://"):
        return _kaggle(name, weights)
    if built_in:
        return built_in.folder or _downloaded(built_in, revision or built_in.revision, weights)
    return _folder(_expanded("preset", preset), name)


def _downloaded(preset: Preset, revision: str, weights: bool) -> Path:
    """The files of a preset that the hub has. An error names the preset, too: that is what the user typed."""
    try:
        return hub.download(preset.source, revision, weights=weights)
    except BloomrefError as error:
        raise type(error)(f"{preset.name}: {error}") from error


def resolve_adapter(adapter: str | Path) -> Path:
    """Return the local folder or file of a LoRA adapter. Missing files are downloaded.

    Args:
        adapter: a built-in name; `hf://user/repo` or `hf://user/repo@revision`; or the path of a folder in PEFT's
            layout or of a `.lora.h5` file. A `Path` is always a path.

    Raises:
        InvalidInput: the adapter does not exist. Unsupported, BadWeights: as `resolve`.
    """
    if not isinstance(adapter, str | Path) or not str(adapter):
        raise invalid("adapter", "an adapter's name, hf://user/repo, a folder of PEFT, or a .lora.h5 file", adapter)
    name = str(adapter)
    if name.startswith("hf://"):
        return hub.download_adapter(*_repository("adapter", name, None))
    if isinstance(adapter, str) and adapter in ADAPTERS:
        return ADAPTERS[adapter].folder
    path = _expanded("adapter", adapter)
    expected = "a folder of PEFT, a .lora.h5 file, hf://user/repo, or the name of an adapter"
    if name in PRESETS and not path.exists():
        raise invalid("adapter", expected, f"the model {name}", f"give it as the model: `-m {name}`, without --adapter")
    if not path.exists() and is_path(name):
        raise no_such_folder("adapter", expected, path)
    if not path.exists():
        raise invalid("adapter", expected, name, f"the built-in adapters are {', '.join(ADAPTERS)}")
    _check_adapter(path, expected)
    return path


def _check_adapter(path: Path, expected: str) -> None:
    """Refuse a model, a file of an adapter, and a folder above adapters, each with what to pass."""
    if path.is_file() and not path.name.endswith(KERAS_ADAPTER):
        raise file_as_adapter(path, expected)
    if not path.is_dir() or peft.exists(path):
        return
    if hf.exists(path) or keras.exists(path):
        raise invalid(
            "adapter", expected, f"a whole model, {path}", f"give it as the model: `-m {path}`, without --adapter"
        )
    if below := models_below(path, peft.CONFIG):
        raise invalid("adapter", expected, f"{path}, a folder above {len(below)}", f"pass the newest: {below[0]}")


def _repository(argument: str, name: str, revision: str | None) -> tuple[str, str]:
    """(repository, revision) of a handle of the Hugging Face hub."""
    repo, _, named = name.removeprefix("hf://").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise invalid(argument, "hf://user/repo or hf://user/repo@revision", name)
    if named and revision not in (None, named):
        raise invalid("revision", f"{named!r}, as the preset's name says, or None", revision)
    return repo, revision or named or "main"


def _expanded(argument: str, path: str | Path) -> Path:
    """The path with the home of a user in the place of `~`."""
    try:
        return as_path(argument, path).expanduser()
    except RuntimeError:
        raise invalid(argument, "the home of a user that the system knows", str(path)) from None


def _folder(path: Path, name: str) -> Path:
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # too long, or not allowed
        raise invalid("preset", "a folder that the system can open", f"{name}: {error}") from None
    if is_folder:
        return path
    if path.is_file():
        raise file_as_model(path)
    if path.exists():
        raise invalid("preset", "a folder with config.json and weights", f"the special file {name}")
    if url := _HUB_PAGE.match(name):
        raise invalid("preset", "a name that starts with hf://, or a folder", name, f"write hf://{url[1]}")
    if "://" in name:
        raise invalid("preset", "a name that starts with hf:// or kaggle://, or a folder", name)
    if is_path(name):
        raise no_such_folder("preset", "a folder that exists", path)
    raise invalid("preset", "the name of a preset, or a folder that exists", name, _suggestion(name))


def _suggestion(name: str) -> str:
    hints = [did_you_mean(name.lower(), PRESETS, 3), f"The built-in presets are {', '.join(PRESETS)}"]
    if not hints[0] and name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~")):
        hints[0] = f"for the repository on the Hugging Face hub write hf://{name}."
    return " ".join(filter(None, hints))


def _kaggle(name: str, weights: bool) -> Path:
    handle = name.removeprefix("kaggle://")
    if handle.count("/") not in (3, 4) or not all(handle.split("/")):
        raise invalid("preset", "kaggle://user/model/framework/variation, optionally with /version", name)
    try:
        import kagglehub
    except ImportError as error:
        raise Unsupported(f"{name}: expected the package kagglehub, got none; pip install bloomref[kaggle]") from error
    return _from_kaggle(kagglehub.model_download, handle, weights)


def _from_kaggle(fetch: Callable[..., str], handle: str, weights: bool) -> Path:
    try:
        if weights:
            return Path(fetch(handle))
        files = [Path(fetch(handle, path=name)) for name in _KAGGLE_SMALL]
        return files[0].parent
    except BloomrefError:
        raise
    except Exception as error:  # kagglehub documents no base class for its errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = InvalidInput if status == 404 else Unsupported
        hint = "if the model requires consent, give it on its Kaggle page and log in with kagglehub.login()"
        raise kind(
            f"kaggle://{handle}: expected a download from Kaggle, got {hub.first_line(error)}; {hint}"
        ) from error
