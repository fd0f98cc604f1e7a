"""The contents of a folder in which a reader misses a file: the message names the files for what they are."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bloomref.errors import BadWeights, BloomrefError, InvalidInput, Unsupported, describe
from bloomref.formats.files import read_json
from bloomref.formats.recognise import (
    AGAIN,
    BROKEN_LINK,
    HDF5,
    MEGATRON,
    PICKLE,
    SAFETENSORS,
    ZEROS,
    Kind,
    by_content,
    by_name,
)

_DEPTH = 4  # models--user--repo/snapshots/COMMIT/config.json in the hub's cache
_CONFIGS = ("config.json", "adapter_config.json")
_LOOKED_AT = 2000  # entries of a tree, at most
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
_QUANTISED = re.compile(r"(?:^|[-_.])(gptq|awq|int4|int8|\d-?bit|exl2|bnb|hqq)(?:[-_.]|$)", re.IGNORECASE)
_QUANTISER_CONFIGS = ("quantize_config.json", "quant_config.json", "quantization_config.json")
QUANTISED_HINT = "bloomref runs weights that are not quantised: get the checkpoint from which they were made"


def no_weights(folder: Path, expected: str) -> BloomrefError:
    """The error for a folder without weights that bloomref reads: it names those that are there.

    Raises:
        OSError: when the folder cannot be listed.
    """
    names = sorted(path.name for path in folder.iterdir())
    if error := _quantised(folder, names) or _unindexed(folder, names):
        return error
    for name, kind in kinds_of(names):
        inside = by_content(folder / name)
        if inside is not None and inside.error is BadWeights and inside is not ZEROS:
            kind = inside
        return _named(folder, name, kind, expected)
    return BadWeights(
        describe(str(folder), expected, ", ".join(names) or "an empty folder", f"the weights are missing: {AGAIN}")
    )


def no_weights_among(place: str, names: Iterable[str], expected: str) -> BloomrefError:
    """The error for a repository whose files have these names, none of which bloomref reads as weights."""
    listed = sorted(names)
    for name, kind in kinds_of(listed):
        what = f"{name}: {kind.what}"
        hint = kind.remedy.replace("{folder}", "FOLDER").replace("{path}", name)
        return kind.error(f"{place}: expected {expected}, got {what}; download its files into a FOLDER; {hint}")
    return BadWeights(describe(place, expected, ", ".join(listed)))


def kinds_of(names: Iterable[str]) -> Iterator[tuple[str, Kind]]:
    """The names that promise weights, with their kinds: what `convert` reads first, other names of ours last."""
    kinds = [(name, kind) for name in names if (kind := by_name(name)) is not None]
    yield from sorted(kinds, key=lambda item: (item[1] in (SAFETENSORS, HDF5), item[1] not in (PICKLE, MEGATRON)))


def _named(folder: Path, name: str, kind: Kind, expected: str) -> BloomrefError:
    remedy = kind.remedy.replace("{folder}", str(folder)).replace("{path}", str(folder / name))
    return kind.error(f"{folder}: expected {expected}, got {name}: {kind.what}; {remedy}")


def _quantised(folder: Path, names: list[str]) -> BloomrefError | None:
    config = next((name for name in names if name in _QUANTISER_CONFIGS), None)
    of_weights = (name for name in names if name.endswith((".safetensors", ".bin", ".pt")))
    match = next((match for name in of_weights if (match := _QUANTISED.search(name))), None)
    if config is None and match is None:
        return None
    facts = read_json(folder / config) if config else {}
    method = facts.get("quant_method") or (match[1].upper() if match else "method unknown")
    bits = f", {facts['bits']} bits" if isinstance(facts.get("bits"), int) else ""
    source = config or (match.string if match else "")
    return Unsupported(f"{folder}: {source}: these weights are quantised ({method}{bits}); {QUANTISED_HINT}")


def _unindexed(folder: Path, names: list[str]) -> BloomrefError | None:
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if not shards:
        return None
    index = re.sub(r"-\d+-of-\d+\.safetensors", ".safetensors.index.json", shards[0])
    hint = "download or copy that file, too: it names the shard of each weight"
    return BadWeights(describe(str(folder), f"{index} beside the shards", f"{shards[0]} without it", hint))


def no_config(folder: Path) -> BloomrefError:
    """The error for a folder without config.json: it names a model below it, or the files that are there."""
    if below := models_below(folder):
        places = ", ".join(str(path.relative_to(folder)) for path in below[:4])
        more = f" and {len(below) - 4} more" if len(below) > 4 else ""
        which = "the newest" if len(below) > 1 else "it"
        return InvalidInput(
            f"{folder}: expected the folder of a model, with config.json, got one above {places}{more}; "
            f"pass {which}: {below[0]}"
        )
    if (folder / "config.json").is_symlink():
        return BROKEN_LINK.refusal(folder / "config.json", "a file")
    names = sorted(path.name for path in folder.iterdir())
    kinds = [(name, kind) for name, kind in kinds_of(names) if kind not in (SAFETENSORS, HDF5)]
    if kinds:
        return _named(folder, *kinds[0], "a model's config.json, with safetensors or Keras weights")
    hint = f"copy config.json beside the weights, or {AGAIN}" if any(by_name(name) for name in names) else ""
    return BadWeights(describe(f"{folder}: config.json", "a file", f"a folder with {_shown(names)}", hint))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "no files"


def models_below(folder: Path, *configs: str) -> list[Path]:
    """Folders below with one of these files, by default config.json or adapter_config.json, the newest first.

    `checkpoint-500` is newer than `checkpoint-90`: the number of a training's steps decides before the time of
    the last change.
    """
    models = [path.parent for path in _walk(folder, _DEPTH) if path.name in (configs or _CONFIGS)]
    return sorted(set(models), key=_age, reverse=True)


def _age(folder: Path) -> tuple[int, float, str]:
    steps = re.search(r"(?:^|[-_]|steps?|epoch)(\d{1,15})$", folder.name)
    return int(steps[1]) if steps else -1, folder.stat().st_mtime, folder.name


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    budget = _LOOKED_AT
    level = [folder]
    for _ in range(depth):
        entries = [entry for place in level for entry in _entries(place)][:budget]
        budget -= len(entries)
        yield from (entry for entry in entries if entry.parent != folder)
        level = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
