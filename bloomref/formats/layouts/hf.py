"""Hugging Face layout: config.json, model.safetensors or shards with an index, tokenizer files."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.errors import BadWeights, describe
from bloomref.formats.arrays import check_finite, common_dtype, convert
from bloomref.formats.files import into_shards, regular_file, shard_path, weight_map, write_json
from bloomref.formats.folder_contents import QUANTISED_HINT, no_weights
from bloomref.formats.layouts.tensor_names import check_names, is_used, key_of
from bloomref.formats.recognise import AGAIN
from bloomref.formats.safetensors_io import DTYPES, FLOATS, Entry, SafetensorsFile, write_safetensors
from bloomref.formats.saved_folder import staged_model
from bloomref.formats.tokenizers.tokenizer_files import write_hf_tokenizer
from bloomref.formats.validation_cache import is_validated, record_validated
from bloomref.params import HF_PREFIX, LM_HEAD, WORD_EMBEDDING, Params, Source, Weight, full_key, keys
from bloomref.shapes import Array

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_RIVALS = (WEIGHTS,)  # read before an index


def exists(folder: Path) -> bool:
    """True if the folder has weights in this layout."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


Place = tuple[SafetensorsFile, str]
"""A file, and the name of a tensor in it."""


@dataclass(frozen=True)
class HfWeights:
    """Open weights of one folder.

    Args:
        files: Hugging Face key (without `transformer.`) -> its place, for every tensor: also for heads and other
            tensors that the language model does not use.
        copies: further places of keys that are stored under two names.
    """

    files: Mapping[str, Place]
    copies: tuple[tuple[str, Place], ...] = ()

    @property
    def dtype(self) -> DType:
        """Narrowest dtype that represents every stored weight exactly."""
        entries = (file.entries[name] for file, name in self.files.values() if is_used(name))
        return common_dtype(DTYPES[entry.dtype] for entry in entries if entry.dtype in FLOATS)

    @property
    def unused(self) -> list[str]:
        """Stored names of tensors that a language model does not use, such as heads: they are ignored (WGT-15)."""
        return [name for _, name in self.files.values() if not is_used(name)]

    @property
    def has_lm_head(self) -> bool:
        """True if the LM head is stored, tied or not."""
        return LM_HEAD.hf_key in self.files

    def entry(self, key: str) -> Entry:
        """Header entry of the weight with this Hugging Face key: its dtype, shape and position."""
        file, name = self.files[key]
        return file.entries[name]

    def params(self, config: BloomConfig, dtype: DType | None) -> Params:
        """Read the weights. Arrays in their stored dtype are views of the memory map, others are rounded copies.

        Args:
            config: config of the model; it decides names and shapes.
            dtype: dtype of the result; None: `self.dtype`.

        Raises:
            BadWeights: when a weight is missing, unknown, of another shape or dtype, or not finite; or when a stored
                lm_head.weight differs from the embedding to which it is tied. Clauses: WGT-1 ... WGT-7, WGT-15.
            Unsupported: when weights are quantised, or hold an adapter that is not merged.
        """
        if config.tie_word_embeddings and self.has_lm_head and WORD_EMBEDDING.hf_key not in self.files:
            head = {WORD_EMBEDDING.hf_key: self.files[LM_HEAD.hf_key]}  # a tied weight, stored once (WGT-4)
            return HfWeights({**self.files, **head}, self.copies).params(config, dtype)
        self._check(config)
        target, source = self.dtype if dtype is None else dtype, self.source
        is_checked = is_validated(source, "finite")

        def get(weight: Weight, key: str) -> Array:
            return self._read(key, target, is_checked).reshape(weight.shape(config))

        params = Params.build(config.num_layers, config.tie_word_embeddings, get)
        if config.tie_word_embeddings and LM_HEAD.hf_key in self.files:
            self._check_tied()
        record_validated(source, "finite", sum(array.nbytes for _, _, array in params.named()))
        return replace(params, source=source)

    @property
    def source(self) -> Source:
        """Folder of the weights, and a hash of their names, sizes, modification times and inodes."""
        paths = sorted({file.path for file, _ in self.files.values()})
        facts = [(p.name, s.st_size, s.st_mtime_ns, s.st_ino) for p in paths for s in (p.stat(),)]
        return Source(str(paths[0].parent.absolute()), hashlib.sha256(repr(facts).encode()).hexdigest())

    def _read(self, key: str, dtype: DType, is_checked: bool) -> Array:
        file, name = self.files[key]
        if DTYPES[self.entry(key).dtype] == dtype:
            array = file.view(name)
            if not is_checked:
                check_finite(array, key)
            return array
        return convert(file.pieces(name), self.entry(key).shape, dtype, key)

    def _check(self, config: BloomConfig) -> None:
        if config.num_layers > len(self.files):  # refuse a hostile number of layers before enumerating its names
            raise BadWeights(describe("weights", f"{config.num_layers} layers", f"{len(self.files)} tensors"))
        expected = dict(keys(config))
        tied_copy = {LM_HEAD.hf_key: LM_HEAD} if config.tie_word_embeddings and LM_HEAD.hf_key in self.files else {}
        check_names(expected | tied_copy, {key: name for key, (_, name) in self.files.items()})
        for key, copy in self.copies:
            if key in expected | tied_copy and not _same_bytes(self.files[key], copy):
                raise BadWeights(
                    f"weights: expected {key} once, got two different ones, with and without {HF_PREFIX!r}"
                )
        for key, weight in (expected | tied_copy).items():
            entry, place = self.entry(key), f"{self.files[key][0].path.name}: {key}"
            if entry.dtype not in FLOATS:
                hint = f"these weights are quantised: {QUANTISED_HINT}" if entry.dtype in ("I8", "U8") else ""
                raise BadWeights(describe(f"{place}: dtype", f"one of {', '.join(FLOATS)}", entry.dtype, hint))
            if entry.shape != weight.hf_shape(config):
                raise BadWeights(describe(f"{place}: shape", str(weight.hf_shape(config)), str(entry.shape)))

    def _check_tied(self) -> None:
        if not _same_bytes(*(self.files[key] for key in _TIED)):
            raise BadWeights(
                f"{LM_HEAD.hf_key}: expected the bytes of {WORD_EMBEDDING.hf_key}, to which config.json ties it, got "
                "other ones; set tie_word_embeddings to false in config.json if the LM head is untied"
            )


_TIED = (WORD_EMBEDDING.hf_key, LM_HEAD.hf_key)


def _same_bytes(first: Place, second: Place) -> bool:
    one, other = (file.view(name) for file, name in (first, second))
    return (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        one[row : row + 256].tobytes() == other[row : row + 256].tobytes() for row in range(0, len(one), 256)
    )


def open_weights(folder: Path) -> HfWeights:
    """Open model.safetensors or, without it, the files that the index names. Only headers are read.

    Raises:
        BadWeights: when files are missing, damaged, hostile, or disagree with the index.
        Unsupported: when the folder has only pickled weights. Clause: WGT-10.
    """
    if (folder / WEIGHTS).exists():
        file = SafetensorsFile(folder / WEIGHTS)
        return _by_key((file, name) for name in file.entries)
    if (folder / INDEX).exists():
        return _by_key(_open_shards(folder))
    raise no_weights(folder, f"{WEIGHTS} or {INDEX}")


def _open_shards(folder: Path) -> Iterator[Place]:
    """The tensors of all shards. The index decides between two of one name; otherwise it may name more or fewer.

    Clauses: WGT-8, WGT-16.
    """
    index = {name: value for name, value in weight_map(folder / INDEX).items() if value is not None}
    paths = {name: shard_path(folder, name, INDEX) for name in dict.fromkeys(map(_file_name, index.values()))}
    _check_present(folder, paths)
    shards = {name: SafetensorsFile(regular_file(path)) for name, path in paths.items()}
    first: dict[str, str] = {}
    for file_name, shard in shards.items():
        for name in shard.entries:
            listed = index.get(name)
            if listed == file_name or listed not in shards or name not in shards[listed].entries:
                if name in first:
                    raise BadWeights(f"{name}: expected it in one shard, got it in {first[name]} and {file_name}")
                first[name] = file_name
                yield shard, name


def _check_present(folder: Path, paths: Mapping[str, Path]) -> None:
    missing = [name for name, path in paths.items() if not path.exists() and not path.is_symlink()]
    if missing:
        got = f"{len(paths) - len(missing)} of {len(paths)}: {missing[0]} is missing"
        raise BadWeights(describe(str(folder), f"the shards that {INDEX} names", got, AGAIN))


def _file_name(value: object) -> str:
    if not isinstance(value, str):
        raise BadWeights(describe(f"{INDEX}: weight_map", "the name of a file for every weight", value))
    return value


def _by_key(places: Iterable[Place]) -> HfWeights:
    files: dict[str, Place] = {}
    copies: list[tuple[str, Place]] = []
    for place in places:
        key = key_of(place[1])
        if key in files:
            copies.append((key, place))
        else:
            files[key] = place
    return HfWeights(files, tuple(copies))


def save(
    folder: Path | str,
    config: BloomConfig,
    params: Params,
    *,
    tokenizer_from: Path | None = None,
    head: Mapping[str, Array] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = True,
) -> None:
    """Write a folder that transformers' BloomForCausalLM loads. The weights keep their dtype and bits.

    Args:
        folder: the folder to write; an error leaves it unchanged.
        config: config of the model.
        params: weights of the model.
        tokenizer_from: folder in either layout whose tokenizer is written, too; None: no tokenizer.
        head: weights of a classification head under their names in a checkpoint, written last.
        max_shard_bytes: largest size of a weight file in bytes; larger weights are split, with an index.
        overwrite: replace the model in the folder; False: refuse a folder that has any files (WGT-20).

    Raises:
        InvalidInput: when the folder cannot be written; BadWeights: when the tokenizer's files are damaged.
    """
    dtype = params.word_embedding.dtype.name
    data = config.to_hf()
    data |= {"dtype": dtype, "torch_dtype": dtype} if "torch_dtype" in data else {"dtype": dtype}
    with staged_model(Path(folder), CONFIG, overwrite, _RIVALS) as stage:
        arrays = chain(_stored(params, config), (head or {}).items())
        _write_weights(stage, arrays, max_shard_bytes)
        if tokenizer_from is not None:
            write_hf_tokenizer(Path(tokenizer_from), stage)
        write_json(stage / CONFIG, dict(sorted(data.items())))


def _stored(params: Params, config: BloomConfig) -> Iterator[tuple[str, Array]]:
    for key, weight, array in params.named():
        yield full_key(key), array.reshape(weight.hf_shape(config))


def _write_weights(stage: Path, arrays: Iterator[tuple[str, Array]], max_shard_bytes: int) -> None:
    shards = into_shards(arrays, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(stage / WEIGHTS, shards[0])
        return
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(stage / name, shard)
        placed |= dict.fromkeys(shard, name)
    total = sum(array.nbytes for shard in shards for array in shard.values())
    write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
