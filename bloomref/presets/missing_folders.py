"""Messages for a path that is not the folder of a model or an adapter: a file, or nothing."""

import os
from difflib import get_close_matches
from pathlib import Path

from bloomref.errors import BloomrefError, Unsupported, invalid
from bloomref.formats.adapters import peft
from bloomref.formats.recognise import by_content, by_name

_ADAPTER_FILES = (peft.CONFIG, peft.WEIGHTS, "adapter_model.bin")


def file_as_model(path: Path) -> BloomrefError:
    """The error for a file in the place of a model's folder: it names the folder, or what the file is."""
    expected = "a folder with config.json and weights"
    if path.name in _ADAPTER_FILES or path.name.endswith(".lora.h5"):
        adapter = path if path.name.endswith(".h5") else path.parent
        return invalid("preset", expected, f"the adapter's file {path}", f"give both: `--adapter {adapter} -m BASE`")
    for kind in (by_content(path), by_name(path.name)):
        if kind is not None and kind.error is Unsupported:
            return kind.refusal(path, expected)
    needed = "" if (path.parent / "config.json").exists() else ", and put config.json there"
    return invalid("preset", expected, f"the file {path}", f"pass its folder, {path.parent}{needed}")


def file_as_adapter(path: Path, expected: str) -> BloomrefError:
    """The error for a file in the place of an adapter's folder."""
    if (path.parent / peft.CONFIG).exists():
        return invalid("adapter", expected, f"the file {path}", f"pass its folder, {path.parent}")
    kind = by_content(path)
    return kind.refusal(path, expected) if kind else invalid("adapter", expected, f"the file {path}")


def is_path(name: str) -> bool:
    """True if a name can only be a path: it has a separator beyond that of user/repo, or begins as a path does."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)


def no_such_folder(argument: str, expected: str, path: Path) -> BloomrefError:
    """The error for a path that does not exist: it names the nearest names of the deepest folder that does."""
    missing, parent = path, path.parent
    while not parent.is_dir() and parent != parent.parent:
        missing, parent = parent, parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() or missing == path)
    except OSError:
        names = []
    near = [str(parent / name) for name in get_close_matches(missing.name, names, 3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"{parent.absolute()} has no {missing.name!r}"
    return invalid(argument, expected, str(path), hint)
