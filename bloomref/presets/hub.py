"""Downloads from the Hugging Face hub with huggingface_hub: its cache, progress bars and offline mode.

Config and tokenizer come first, and decide which weight files to fetch by name. So weights are fetched in one format
only, and pickles never. huggingface_hub checks the size of a downloaded file, this module its digest.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bloomref.errors import BadWeights, BloomrefError, InvalidInput, Unsupported, describe
from bloomref.formats import generation_config
from bloomref.formats.adapters import peft
from bloomref.formats.files import read_json, shard_path, weight_map
from bloomref.formats.folder_contents import no_weights_among
from bloomref.formats.layouts import hf, keras
from bloomref.formats.tokenizers.tokenizer_facts import TEMPLATES
from bloomref.formats.tokenizers.tokenizer_files import HF_FILES, KERAS_FILES

_SMALL = (
    hf.CONFIG,
    *HF_FILES,
    *KERAS_FILES,
    generation_config.FILE,
    keras.METADATA,
    "task.json",
    hf.INDEX,
    keras.INDEX,
)
_BESIDE = (
    f"{TEMPLATES}/*.jinja",
    "README*",
    "LICEN?E*",
    "Licen?e*",
    "licen?e*",
    "COPYING*",
    "NOTICE*",
    "Notice*",
    "USE_POLICY*",
)
"""Patterns of files that a copy of a model keeps (PRE-12); a repository may have none of them."""
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def download(repo: str, revision: str, *, weights: bool) -> Path:
    """Download config, tokenizer and weights of a repository. Returns the folder of the local snapshot.

    Args:
        repo: `user/repo`.
        revision: branch, tag or commit.
        weights: False: do not download the weights.

    Raises:
        InvalidInput: the repository or revision does not exist.
        Unsupported: no network, no permission, or only pickled weights.
        BadWeights: a file is missing, or its size or digest is not the one that the hub lists.
    """
    folder = _fetch(repo, revision, (*_SMALL, peft.CONFIG), _BESIDE)
    for path in [*(folder / n for n in (*_SMALL, peft.CONFIG)), *(path for p in _BESIDE for path in folder.glob(p))]:
        _check_digest(path, repo)
    if peft.exists(folder) and not (folder / hf.CONFIG).exists():
        hint = f"give both: `--adapter hf://{repo} -m BASE`"
        raise InvalidInput(describe(f"hf://{repo}", "a model", "an adapter", hint))
    if not (folder / hf.CONFIG).exists():
        raise BadWeights(describe(f"hf://{repo}", "a repository with a config.json", "one without"))
    if weights:
        _fetch_weights(repo, folder, revision)
    return folder


def download_adapter(repo: str, revision: str) -> Path:
    """Download a PEFT adapter, its config and its factors. Returns the folder of the local snapshot.

    Args:
        repo: `user/repo`.
        revision: branch, tag or commit.

    Raises:
        InvalidInput, Unsupported, BadWeights: as `download`.
    """
    names = (peft.CONFIG, peft.WEIGHTS)
    folder = _fetch(repo, revision, names)
    for name in names:
        _check_digest(folder / name, repo)
    if not peft.exists(folder):
        raise BadWeights(describe(f"hf://{repo}", f"an adapter, with {peft.CONFIG}", "a repository without it"))
    if not (folder / peft.WEIGHTS).exists():
        raise _no_weights(repo, _commit(folder, revision), peft.WEIGHTS)
    return folder


def _fetch_weights(repo: str, folder: Path, revision: str) -> None:
    names = _weight_files(folder)
    fresh = [name for name in names if not (folder / name).exists()]
    commit = _commit(folder, revision)
    _fetch(repo, commit, names)
    for name in fresh:
        _check_digest(folder / name, repo)
    if not any((folder / name).exists() for name in names):
        raise _no_weights(repo, commit)
    missing = [name for name in names if not (folder / name).exists()]
    if missing and (folder / _index(folder)).exists():
        raise BadWeights(f"hf://{repo}: expected the file {missing[0]}, which its index names, got none")


def _commit(folder: Path, revision: str) -> str:
    """Commit of a snapshot, which is the name of its folder, or else the revision."""
    return folder.name if _SHA1.fullmatch(folder.name) else revision


def _index(folder: Path) -> str:
    return keras.INDEX if keras.describes(read_json(folder / hf.CONFIG)) else hf.INDEX


def _weight_files(folder: Path) -> list[str]:
    index = folder / _index(folder)
    if not index.exists():
        return [hf.WEIGHTS] if index.name == hf.INDEX else [keras.WEIGHTS, keras.TASK_WEIGHTS]
    names = [n for value in weight_map(index).values() for n in (value if isinstance(value, list) else [value])]
    paths = dict.fromkeys(shard_path(folder, name, index.name) for name in names)
    return [str(path.relative_to(folder)) for path in paths]


def _fetch(repo: str, revision: str, names: Iterable[str], patterns: Iterable[str] = ()) -> Path:
    """Download those of the files that the repository has, by name or pattern. Returns the folder of the snapshot."""
    try:
        from huggingface_hub import snapshot_download

        allowed = [*(re.sub(r"([*?[])", r"[\1]", name) for name in names), *patterns]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=allowed, library_name="bloomref"))
    except Exception as error:
        raise _translated(error, repo, revision) from error


def _check_digest(path: Path, repo: str) -> None:
    """Check the digest of a file in the hub's cache, and delete a damaged file.

    The file is a link to a blob, and the blob's name is its digest: SHA-256, or git's SHA-1.
    """
    if not path.is_symlink():
        return
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _SHA1.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return
    with blob.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink()  # the next try downloads it again
        raise BadWeights(
            f"hf://{repo}: {path.name}: expected the digest {blob.name}, got {digest.hexdigest()}; try again"
        )


def _no_weights(repo: str, revision: str, expected: str = f"{hf.WEIGHTS} or {hf.INDEX}") -> BloomrefError:
    try:
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(repo, revision=revision)
    except Exception as error:
        return BadWeights(f"hf://{repo}: expected {expected}, got a repository without it ({first_line(error)})")
    return no_weights_among(f"hf://{repo}", names, expected)


def _translated(error: Exception, repo: str, revision: str) -> BloomrefError:
    from huggingface_hub import errors

    name = f"hf://{repo}"
    if isinstance(error, errors.GatedRepoError):
        hint = f"accept its conditions at https://huggingface.co/{repo}, then log in with `hf auth login`"
        return Unsupported(f"{name}: expected access to the repository, got a refusal; {hint}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check its spelling; a private one needs `hf auth login`"
        return InvalidInput(f"{name}: expected a repository of the hub, got none of this name; {hint}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InvalidInput(describe(f"{name}: revision", "a branch, tag or commit of the repository", revision))
    if isinstance(error, errors.HFValidationError):
        return InvalidInput(describe("preset", "hf://user/repo", name))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        file = str(error.response.url).rpartition("/")[2]
        return BadWeights(f"{name}: expected the file {file}, which the repository lists, got none")
    return _transport_error(error, name)


def _transport_error(error: Exception, name: str) -> BloomrefError:
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return Unsupported(f"{name}: expected its files in the cache, got none; HF_HUB_OFFLINE forbids downloads")
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return Unsupported(f"{name}: expected access to the repository, got HTTP {status}; `hf auth login`")
        if status is not None:
            return Unsupported(f"{name}: expected an answer of the hub, got HTTP {status}; try again later")
    if "Consistency check failed" in str(error):
        return BadWeights(f"{name}: expected a file of the announced size, got {first_line(error)}")
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_network(causes):
        return Unsupported(
            f"{name}: expected its files in the cache or a connection to the hub, got {first_line(causes[-1])}; check "
            "the network, then try again: complete files are kept"
        )
    return Unsupported(f"{name}: expected a download, got {type(error).__name__}: {first_line(error)}")


def _is_network(causes: list[BaseException]) -> bool:
    """True if a cause is a network error: a ConnectionError, or an error of httpx, which has no common base class."""
    return any(isinstance(c, ConnectionError) or type(c).__module__.startswith(("httpx", "httpcore")) for c in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def first_line(error: BaseException) -> str:
    """First line of another package's error message, or the error's class name without one."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
