"""`BloomCausalLM.fit`: combines model, data and settings, and runs the training loop."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from bloomref.argument_kinds import as_path
from bloomref.errors import invalid
from bloomref.training import data_files, documents, memory_need, training_state
from bloomref.training.batches import BatchSource, Packed, as_source, fingerprint, source_fingerprint, steps_of
from bloomref.training.documents import Document
from bloomref.training.evaluation import in_rows, mean_loss
from bloomref.training.history import History
from bloomref.training.loop import train
from bloomref.training.optimizer import AdamW
from bloomref.training.packing import Batch, cut
from bloomref.training.records import Record, is_conversation, of_record
from bloomref.training.settings import Settings
from bloomref.training.trainable import Trainable, trainable
from bloomref.training.trainer import Trainer

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone
    from bloomref.tokenizer import BloomTokenizer

Texts = str | Path | Sequence[Path | str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]
Data = Texts | Callable[[int], Batch] | Iterable[Batch]


class LanguageModel(Protocol):
    """Parts of a BloomCausalLM that training uses."""

    @property
    def backbone(self) -> "BloomBackbone": ...

    @property
    def tokenizer(self) -> "BloomTokenizer | None": ...

    @property
    def end_token_ids(self) -> tuple[int, ...]: ...


M = TypeVar("M", bound=LanguageModel)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Checkpoints and progress of a run. Nothing here changes its result.

    Args:
        folder: folder of the checkpoints; None: no checkpoints are written.
        save_every: steps between two checkpoints; 0: only at the end, and on Ctrl-C.
        resume: continue from the newest checkpoint of the folder, if there is one.
        progress: show the memory that is needed and a progress bar on stderr.
        facts: name -> value; further values that must be equal when the run is resumed.
    """

    folder: Path | None = None
    save_every: int = 100
    resume: bool = False
    progress: bool = False
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reading:
    """Rules by which files and records become documents.

    Args:
        separator: text between the documents of a text file; None: a file is one.
        chat_template: that of `documents.tokenize`.
        completion_only: only answers count in the loss.
    """

    separator: str | None
    chat_template: str | None
    completion_only: bool


def fit(
    model: M,
    data: Data,
    settings: Settings,
    run: Run,
    *,
    held_out: Texts | None = None,
    separator: str | None = None,
    chat_template: str | None = None,
    evaluate: Callable[[M], float] | None = None,
) -> History:
    """Train the model in place. The arguments are those of `BloomCausalLM.fit`.

    Raises:
        InvalidInput: when a setting or the data are invalid, naming the setting, or the file and line.
        Unsupported: when the weights cannot be trained, or not in this machine's memory.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
    """
    reading = Reading(separator, chat_template, settings.completion_only)
    source, kept_back = _data(model, data, held_out, reading, settings)
    _check_memory(model.backbone, settings, _first(source), run.progress)
    part = trainable(model.backbone, settings)
    measure = _measure(model, part, kept_back, settings, evaluate)
    facts = {**(run.facts or {}), "data": _identity(source, kept_back), "model": part.identity}
    trainer = _trainer(part, source, settings, measure, facts)
    with nullcontext() if run.folder is None else training_state.reserved(run.folder):
        _resume(trainer, run)
        part.commit()
        try:
            train(trainer, run.folder, run.save_every, run.progress)
        finally:
            part.commit()
    return trainer.history


def _first(source: BatchSource) -> Batch:
    batch: object = source(0)
    if not isinstance(batch, Batch):
        raise invalid("data", "batches (bloomref.training.packing.Batch)", type(batch).__name__)
    return batch


def _check_memory(backbone: "BloomBackbone", settings: Settings, batch: Batch, say: bool) -> None:
    """Refuse what cannot fit before anything is allocated; with `say`, tell the need on stderr. Clause: TRN-23."""
    need = memory_need.of_training(backbone.config, backbone.policy, backbone.trainable_variables(), settings, batch)
    need.check()
    if say:
        print(f"memory: at least {memory_need.shown(need.total)} ({need.parts()})", file=sys.stderr)


def _trainer(
    part: Trainable,
    source: BatchSource,
    settings: Settings,
    measure: Callable[[], float] | None,
    facts: Mapping[str, Any],
) -> Trainer:
    betas = (float(settings.beta1), float(settings.beta2), float(settings.epsilon))
    optimizer = AdamW.create(part.variables, part.decays, *betas, settings.weight_decay)
    steps = steps_of(settings, source)
    return Trainer(part.variables, part.gradients, source, settings, steps, optimizer, part.drops, measure, facts)


def _resume(trainer: Trainer, run: Run) -> None:
    newest = None if run.folder is None else training_state.latest(run.folder)
    if newest is None:
        return
    if not run.resume:
        hint = "resume it, or choose another folder"
        raise invalid("checkpoint", "a folder without a checkpoint, for a new run", str(newest), hint)
    trainer.restore(training_state.load(newest))


# --- data ----------------------------------------------------------------------------------------


def _data(
    model: LanguageModel, data: Data, held_out: Texts | None, reading: Reading, settings: Settings
) -> tuple[BatchSource, list[Document]]:
    """Return the source of batches and the held-out documents."""
    if not isinstance(held_out, NoneType | Iterator) and not _is_texts("held_out", held_out):
        raise invalid("held_out", "a share in [0, 1), a path, or a list of texts or records", type(held_out).__name__)
    own = [] if held_out is None else _documents(model, "held_out", held_out, reading)
    if not _is_texts("data", data):
        return as_source(cast("Callable[[int], Batch] | Iterable[Batch]", data)), own
    learned, drawn = documents.split(_documents(model, "data", data, reading), settings.held_out, settings.seed)
    return Packed(learned, settings, _padding(model)), own + drawn


def _padding(model: LanguageModel) -> int:
    """Id of padding. Its value has no effect, but it must be in the vocabulary; 0 where the model has none there."""
    config = model.backbone.config
    return config.pad_token_id if (config.pad_token_id or 0) < config.vocabulary_size and config.pad_token_id else 0


def _is_texts(name: str, data: Any) -> bool:
    """True if an argument is texts, records or files; False if it is a source of batches.

    Raises:
        InvalidInput: when it is neither.
    """
    if isinstance(data, (str, Path)) or (isinstance(data, Sequence) and not any(isinstance(d, Batch) for d in data)):
        return True
    if callable(data) or isinstance(data, (Sequence, Iterator)):
        return False
    is_iterable = isinstance(data, Iterable) and getattr(data, "ndim", 1) > 0
    first = next(iter(data), None) if is_iterable else None
    if not isinstance(first, (Mapping, Batch)):
        expected = "a path, a list of texts or records, or batches"
        raise invalid(name, expected, type(data).__name__, "of a DataFrame, pass df.to_dict('records')")
    return isinstance(first, Mapping)


def _documents(model: LanguageModel, name: str, data: Any, reading: Reading) -> list[Document]:
    if model.tokenizer is None:
        raise invalid(name, "batches of token ids, because the model has no tokenizer", "text")
    is_path = isinstance(data, (str, Path))
    records = (
        data_files.read([as_path(name, data)], reading.separator)
        if is_path
        else _records(name, data, reading.separator)
    )
    return documents.tokenize(
        records, model.tokenizer, reading.completion_only, model.end_token_ids, reading.chat_template
    )


def _records(name: str, data: Sequence[Any], separator: str | None) -> list[Record]:
    """Records of a sequence of paths, strings, mappings and lists of messages; a list of messages is one of them."""
    records: list[Record] = []
    for index, item in enumerate([data] if is_conversation(data) else data):
        place = f"{name}[{index}]"
        if isinstance(item, Path):
            records += data_files.read([as_path(place, item)], separator)
        else:
            records.append(of_record(item, place))
    return records


def _identity(source: BatchSource, kept_back: Sequence[Document]) -> str:
    arrays = [array for document in kept_back for array in (document.token_ids, document.is_target)]
    return f"{source_fingerprint(source)} {fingerprint(arrays)}"


def _measure(
    model: M,
    part: Trainable,
    kept_back: Sequence[Document],
    settings: Settings,
    evaluate: Callable[[M], float] | None,
) -> Callable[[], float] | None:
    """Evaluation function: the caller's, or else the loss on the held-out documents; None without either."""
    pieces = cut(kept_back, settings.context)
    if evaluate is None and not pieces:
        return None
    batches = in_rows(pieces, settings.batch, _padding(model))

    def measure() -> float:
        part.commit()
        return mean_loss(model.backbone.engine, batches) if evaluate is None else float(evaluate(model))

    return measure
