"""Folders of torch's pickled weights, written again with safetensors. No code of the files runs. Clause: WGT-30.

Names, dtypes and bits of the tensors stay. Each pickled file becomes one safetensors file, so that one file at a time
is open. What stands beside the weights (config, tokenizer, chat template ...) is copied.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bloomref.errors import BadWeights, InvalidInput, describe
from bloomref.formats.adapters import peft
from bloomref.formats.files import regular_file, shard_path, weight_map, write_json
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.pickles import megatron
from bloomref.formats.pickles.torch_file import TorchFile
from bloomref.formats.recognise import MEGATRON, PICKLE, by_name
from bloomref.formats.safetensors_io import write_safetensors
from bloomref.formats.saved_folder import staged_model
from bloomref.params import LM_HEAD, WORD_EMBEDDING, full_key
from bloomref.shapes import Array

MODEL = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_model.bin"
_SHARD = re.compile(r".*[-_]([0-9]+)-of-([0-9]+)\.\w+")
_BESIDE = (".json", ".txt", ".jinja", ".model", ".md")
"""Endings of the files beside the weights that are copied."""


@dataclass(frozen=True)
class Report:
    """Facts of a conversion.

    Args:
        kind: "model", "adapter" or "layer files of Megatron-DeepSpeed".
        tensors: number of tensors written.
        bytes: size of the numbers written.
    """

    kind: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class _Job:
    """Files that become one safetensors file."""

    paths: Sequence[Path]
    read: Callable[[Sequence[TorchFile]], Mapping[str, Array]]


def size(source: Path) -> int:
    """Bytes of the pickled files in a folder.

    Raises:
        InvalidInput: when the folder has no pickled weights; BadWeights: when its index is damaged.
    """
    _, jobs = _jobs(source)
    return sum(regular_file(path).stat().st_size for job in jobs for path in job.paths)


def convert(
    source: Path,
    target: Path,
    config: Path | None = None,
    overwrite: bool = False,
    advance: Callable[[int], object] | None = None,
) -> Report:
    """Write the pickled weights in a folder as a folder of safetensors.

    Args:
        source: a folder with pytorch_model.bin (or its shards and index), adapter_model.bin, layer files, or with one
            pickled model of another name.
        target: the folder to write; an error leaves it unchanged.
        config: the model's config.json; None: the one in `source`, or the training's arguments beside layer files.
        overwrite: replace the model in `target`; False: refuse a folder that has any files (WGT-20).
        advance: called with the number of bytes, after each piece that was written; None: no call.

    Raises:
        InvalidInput: when `source` has no pickled weights, or `target` has files.
        BadWeights: when files are damaged or hostile, or do not fit the config. Then nothing is written.
        Unsupported: when a file is of a kind that torch no longer writes.
    """
    kind, jobs = _jobs(source)
    main = peft.CONFIG if kind == "adapter" else hf.CONFIG
    rivals = () if kind == "adapter" else (hf.WEIGHTS,)  # read before an index
    with staged_model(target, main, overwrite, rivals) as stage:
        for path in _beside(source):
            shutil.copyfile(regular_file(path), stage / path.name)
        if kind == "adapter":
            regular_file(source / peft.CONFIG)
            report = _write(stage, jobs, peft.WEIGHTS, False, advance)
        else:
            _write_config(source, stage, config, kind)
            checkpoint = open_checkpoint(stage)
            report = _write(stage, jobs, hf.WEIGHTS, checkpoint.config.tie_word_embeddings, advance)
            checkpoint.params()  # refuses weights that do not fit the config
    return Report(kind, *report)


# --- what a folder has -------------------------------------------------------------------------------------------


def _jobs(source: Path) -> tuple[str, list[_Job]]:
    if not source.is_dir():
        hint = f"pass {source.parent}" if source.is_file() else "`hf download USER/REPO --local-dir FOLDER` makes one"
        raise InvalidInput(describe("--from-pickle", "a folder on this machine", str(source), hint))
    if (source / MODEL).exists():
        return "model", [_Job([source / MODEL], _single)]
    if (source / INDEX).exists():
        names = dict.fromkeys(map(str, weight_map(source / INDEX).values()))
        return "model", [_Job([regular_file(shard_path(source, name, INDEX))], _single) for name in names]
    if (source / ADAPTER).exists():
        return "adapter", [_Job([source / ADAPTER], _single)]
    if layers := megatron.layers(source):
        return "layer files of Megatron-DeepSpeed", [_Job(paths, megatron.joined) for paths in layers]
    kind = "adapter" if peft.exists(source) else "model"
    return kind, [_Job([source / name], _single) for name in _others(source)]


def _others(source: Path) -> list[str]:
    """Names of pickled weights under other names: one file, or all shards of a model without their index."""
    names = sorted(path.name for path in source.iterdir())
    pickled = [name for name in names if by_name(name) is PICKLE]
    shards = [match for name in pickled if (match := _SHARD.fullmatch(name))]
    totals = [int(match[2]) for match in shards]
    if len(pickled) == 1 or (len(shards) == len(pickled) and set(totals) == {len(shards)}):
        return pickled
    hint = "leave one model in the folder, with all its shards" if pickled else ""
    if not pickled and any(by_name(name) is MEGATRON for name in names):
        hint = "it has no layer files; DeepSpeed's zero_to_fp32.py, beside its checkpoints, writes a pytorch_model.bin"
    expected = f"a folder with {MODEL}, {INDEX}, {ADAPTER} or layer_*-model_*-model_states.pt"
    raise InvalidInput(describe("--from-pickle", expected, ", ".join(pickled or names) or "an empty folder", hint))


def _single(files: Sequence[TorchFile]) -> Mapping[str, Array]:
    return {name: file.view(tensor) for file in files for name, tensor in file.tensors().items()}


# --- writing -----------------------------------------------------------------------------------------------------


def _write(
    stage: Path, jobs: Sequence[_Job], name: str, is_tied: bool, advance: Callable[[int], object] | None
) -> tuple[int, int]:
    """Write one file for each job, and an index if there are several. Returns the numbers of tensors and bytes."""
    stem, _, ending = name.rpartition(".")
    placed: dict[str, str] = {}
    total = 0
    for number, job in enumerate(jobs, start=1):
        shard = name if len(jobs) == 1 else f"{stem}-{number:05}-of-{len(jobs):05}.{ending}"
        for key, size_of_tensor in _write_file(stage / shard, job, is_tied, advance).items():
            if key in placed:
                raise BadWeights(f"{job.paths[0].name}: {key!r:.80}: expected each tensor in one file, got it in two")
            placed[key] = shard
            total += size_of_tensor
    if len(jobs) > 1:
        write_json(stage / hf.INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    return len(placed), total


def _write_file(path: Path, job: _Job, is_tied: bool, advance: Callable[[int], object] | None) -> dict[str, int]:
    """Write the tensors of one job. Returns their names and sizes in bytes."""
    files = [TorchFile(source) for source in job.paths]
    arrays = dict(job.read(files))
    embedding = arrays.get(full_key(WORD_EMBEDDING.hf_key), arrays.get(WORD_EMBEDDING.hf_key))
    if is_tied and _place(arrays.get(LM_HEAD.hf_key)) == _place(embedding) is not None:
        del arrays[LM_HEAD.hf_key]  # one storage in the pickle; safetensors would store it twice

    def written(count: int) -> None:
        for file in files:
            file.release()
        if advance is not None:
            advance(count)

    write_safetensors(path, arrays, advance=written)
    return {name: array.nbytes for name, array in arrays.items()}


def _place(array: Array | None) -> tuple[object, ...] | None:
    """Address, shape and strides of an array."""
    return None if array is None else (array.ctypes.data, array.shape, array.strides)


def _write_config(source: Path, stage: Path, config: Path | None, kind: str) -> None:
    if config is None and kind != "model" and not (source / hf.CONFIG).exists():
        write_json(stage / hf.CONFIG, megatron.config(source))
        return
    path = source / hf.CONFIG if config is None else config
    shutil.copyfile(regular_file(path), stage / hf.CONFIG)


def _beside(source: Path) -> Iterator[Path]:
    for path in sorted(source.iterdir()):
        is_other = path.name.startswith(".") or path.name.endswith(".index.json")
        if path.is_file() and not is_other and (path.suffix in _BESIDE or path.name == "LICENSE"):
            yield path
