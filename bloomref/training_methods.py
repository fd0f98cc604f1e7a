"""Methods of BloomCausalLM for training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, cast

from bloomref.argument_kinds import as_path, check_kind
from bloomref.backbone import BloomBackbone
from bloomref.errors import invalid
from bloomref.tokenizer import BloomTokenizer
from bloomref.validation import check_bool, check_integer

if TYPE_CHECKING:
    from bloomref.training.fit import Data, Texts
    from bloomref.training.history import History


class TrainingMethods(ABC):
    """`fit`, for a class that has a backbone and a tokenizer."""

    @property
    @abstractmethod
    def backbone(self) -> BloomBackbone: ...

    @property
    @abstractmethod
    def tokenizer(self) -> BloomTokenizer | None: ...

    @property
    @abstractmethod
    def end_token_ids(self) -> tuple[int, ...]: ...

    def fit(
        self,
        data: "Data",
        *,
        held_out: "float | Texts" = 0.0,
        separator: str | None = None,
        chat_template: str | None = None,
        evaluate: Callable[[Self], float] | None = None,
        checkpoints: str | Path | None = None,
        save_every: int = 100,
        resume: bool = False,
        progress: bool = False,
        **settings: Any,
    ) -> "History":
        """Train in place: all weights or, with active adapters, only their factors.

        Args:
            data: the path of a file of text, JSON, JSON lines, CSV or TSV; a list of `Path`s, of texts, of records or
                of lists of messages; or batches: a function of their number, or an iterable
                (`bloomref.training.packing.Batch`). A record is a dictionary with the keys `text`; `prompt` and
                `completion`; `instruction`, `input` and `output`; `input` and `target`; `messages`; or `conversations`.
            held_out: evaluation data: a share in [0, 1) of the documents, or separate documents in a form of `data`.
            separator: text between two documents of a text file; None: a file is one document.
            chat_template: writes conversations, and pairs as conversations: a template, the name of one of the
                tokenizer's, or "default". None: conversations take the tokenizer's own, pairs none.
            evaluate: a function of this model that replaces the held-out loss. Lower is better.
            checkpoints: a folder for the state of the run.
            save_every: steps between two checkpoints; 0: only at the end.
            resume: continue from the newest checkpoint, if there is one.
            progress: show loss, tokens per second and remaining time on stderr.
            **settings: the fields of `bloomref.training.settings.Settings`, such as `steps`, `batch`, `learning_rate`.

        Returns:
            The losses of all steps and evaluations. Clauses: TRN-1 ... TRN-23.

        Raises:
            InvalidInput: naming the setting, or the file and the line; Unsupported: weights that cannot be trained;
            KeyboardInterrupt: after Ctrl-C, once the step is done and the state is saved.

        Example:
            >>> from bloomref import BloomCausalLM
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> history = lm.fit(["Every line counts."] * 4, steps=3, batch=2, learning_rate=1e-3)
            >>> history.losses[0] > history.losses[-1]
            True
        """
        from bloomref.training.fit import Run, fit
        from bloomref.training.settings import Settings

        is_share = isinstance(held_out, Real)
        check_kind("separator", separator, (str, NoneType), "a text or None")
        check_kind("chat_template", chat_template, (str, NoneType), "a template, the name of one, 'default' or None")
        check_integer("save_every", save_every, 0)
        check_bool("resume", resume)
        check_bool("progress", progress)
        if evaluate is not None and not callable(evaluate):
            raise invalid("evaluate", "a function of the model, or None", evaluate)
        chosen = Settings.create(**settings, **({"held_out": held_out} if is_share else {}))
        folder = None if checkpoints is None else as_path("checkpoints", checkpoints)
        run = Run(folder=folder, save_every=save_every, resume=resume, progress=progress)
        documents = None if is_share else cast("Texts", held_out)
        options: dict[str, Any] = {"separator": separator, "chat_template": chat_template, "evaluate": evaluate}
        return fit(self, data, chosen, run, held_out=documents, **options)
