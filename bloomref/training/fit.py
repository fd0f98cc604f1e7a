"""`BloomCausalLM.fit`: combines model, data and settings, and runs the training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from bloomref.errors import invalid
from bloomref.training import documents, training_state
from bloomref.training.batches import BatchSource, Packed, as_source, fingerprint, source_fingerprint, steps_of
from bloomref.training.documents import Document, Text
from bloomref.training.evaluation import in_rows, mean_loss
from bloomref.training.history import History
from bloomref.training.loop import train
from bloomref.training.optimizer import AdamW
from bloomref.training.packing import Batch, cut
from bloomref.training.settings import Settings
from bloomref.training.trainable import Trainable, trainable
from bloomref.training.trainer import Trainer

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone
    from bloomref.tokenizer import BloomTokenizer

Texts = str | Path | Sequence[Path | str | Mapping[str, str]]
Data = Texts | Callable[[int], Batch] | Iterable[Batch]


class LanguageModel(Protocol):
    """Parts of a BloomCausalLM that training uses."""

    @property
    def backbone(self) -> "BloomBackbone": ...

    @property
    def tokenizer(self) -> "BloomTokenizer | None": ...


M = TypeVar("M", bound=LanguageModel)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Checkpoints and progress of a run. Nothing here changes its result.

    Args:
        folder: folder of the checkpoints; None: no checkpoints are written.
        save_every: steps between two checkpoints; 0: only at the end, and on Ctrl-C.
        resume: continue from the newest checkpoint of the folder, if there is one.
        progress: show a progress bar on stderr.
        facts: name -> value; further values that must be equal when the run is resumed.
    """

    folder: Path | None = None
    save_every: int = 100
    resume: bool = False
    progress: bool = False
    facts: Mapping[str, Any] | None = None


def fit(
    model: M,
    data: Data,
    settings: Settings,
    run: Run,
    *,
    held_out: Texts | None = None,
    separator: str | None = None,
    evaluate: Callable[[M], float] | None = None,
) -> History:
    """Train the model in place. The arguments are those of `BloomCausalLM.fit`.

    Raises:
        InvalidInput: when a setting or the data are invalid, naming the setting, or the file and line.
        Unsupported: when the weights cannot be trained.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
    """
    source, kept_back = _data(model, data, held_out, separator, settings)
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


def _trainer(
    part: Trainable,
    source: BatchSource,
    settings: Settings,
    measure: Callable[[], float] | None,
    facts: Mapping[str, Any],
) -> Trainer:
    betas = (settings.beta1, settings.beta2, settings.epsilon)
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
    model: LanguageModel, data: Data, held_out: Texts | None, separator: str | None, settings: Settings
) -> tuple[BatchSource, list[Document]]:
    """Return the source of batches and the held-out documents."""
    own = [] if held_out is None else _documents(model, held_out, separator, settings)
    if not _is_texts(data):
        return as_source(cast("Callable[[int], Batch] | Iterable[Batch]", data)), own
    learned, drawn = documents.split(_documents(model, data, separator, settings), settings.held_out, settings.seed)
    return Packed(learned, settings, _padding(model)), own + drawn


def _padding(model: LanguageModel) -> int:
    """Id of padding. Its value has no effect, but it must be in the vocabulary; 0 where the model has none there."""
    config = model.backbone.config
    return config.pad_token_id if (config.pad_token_id or 0) < config.vocabulary_size and config.pad_token_id else 0


def _is_texts(data: Any) -> bool:
    """True if `data` is texts or files, not a source of batches."""
    return isinstance(data, (str, Path)) or (isinstance(data, Sequence) and not any(isinstance(d, Batch) for d in data))


def _documents(model: LanguageModel, data: Any, separator: str | None, settings: Settings) -> list[Document]:
    if model.tokenizer is None:
        raise invalid("data", "batches of token ids, because the model has no tokenizer", "text")
    texts = documents.read([Path(data)], separator) if isinstance(data, (str, Path)) else _texts(data, separator)
    return documents.tokenize(texts, model.tokenizer, settings.completion_only)


def _texts(data: Sequence[Any], separator: str | None) -> list[Text]:
    """Texts of a sequence of paths, strings and records."""
    texts: list[Text] = []
    for index, item in enumerate(data):
        is_path = isinstance(item, Path)
        texts += documents.read([item], separator) if is_path else [documents.of_record(item, f"data[{index}]")]
    return texts


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
