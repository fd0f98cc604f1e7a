"""The beginning that many prompts have in common: read once, kept, saved, and continued by any number of prompts."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomref.argument_kinds import as_path
from bloomref.errors import BadWeights, describe, invalid
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.generation.prompts import read_request
from bloomref.runtime.engine import Engine
from bloomref.runtime.model_digest import digest
from bloomref.runtime.prefix_states import PrefixStates, read_prefix
from bloomref.tokenizer import BloomTokenizer

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone

_TENSORS = ("token_ids", "keys", "values", "model", "text")


class Prefix:
    """A text or token ids, with their keys and values, as `BloomCausalLM.prefix` makes it.

    What is generated or scored after it is what the model gives for prefix and prompt as one. Only the prompt's own
    tokens are computed; where the last token of the prefix would merge with the prompt, it is computed again.
    """

    def __init__(self, model: Any, text: str | None, states: PrefixStates) -> None:
        self._model, self._engine = model, model.backbone.engine
        self.text = text
        self.states = states

    @property
    def token_ids(self) -> list[int]:
        return [int(token_id) for token_id in self.states.token_ids]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored keys and values: 2 layers x tokens x width, each as wide as the model's dtype."""
        return self.states.nbytes

    def __len__(self) -> int:
        return len(self.states.token_ids)

    def __repr__(self) -> str:
        return f"Prefix({len(self)} tokens, {self.nbytes:,} bytes)"

    def generate(self, inputs: Any, **options: Any) -> Any:
        """`BloomCausalLM.generate` of prompts that follow this prefix: the result of prefix and prompt as one.

        Args:
            inputs: a text or a list of texts; or ids, or a list of them.
            **options: those of `generate`. `strip_prompt=True` leaves out the prefix too.
        """
        return self._model.generate(inputs, prefix=self, **options)

    def stream(self, prompt: str, **options: Any) -> Generator[str, None, int]:
        """`BloomCausalLM.stream` of a prompt that follows this prefix."""
        pieces: Generator[str, None, int] = self._model.stream(prompt, prefix=self, **options)
        return pieces

    def score(self, text: Any, context: Any = None, **options: Any) -> Any:
        """`BloomCausalLM.score` of a text or texts behind this prefix, or behind prefix and context.

        Args:
            text: a text, the ids of one, or a list of these.
            context: what stands between the prefix and `text`; for a list, one for all or one for each.
            **options: those of `score`.
        """
        engine = self._model.backbone.engine
        request = read_request("text", text, engine.config.vocabulary_size)
        start = self._start(engine, request.kind)
        alone = start if request.is_single or request.kind == "text" else [start] * len(request.rows)
        before = alone if context is None else self.before(engine, context)
        return self._model.score(text, context=before, prefix=self.states, **options)

    def before(self, engine: Engine, inputs: Any) -> Any:
        """The inputs with this prefix before each prompt.

        Raises:
            InvalidInput: for inputs of another form, or when the model has changed since the prefix was made.
        """
        if isinstance(inputs, Mapping):
            raise invalid("inputs", "texts or lists of ids after a prefix", "a dictionary")
        request = read_request("inputs", inputs, engine.config.vocabulary_size)
        start = self._start(engine, request.kind)
        rows = [start + row for row in request.rows]
        return rows[0] if request.is_single else rows

    def _start(self, engine: Engine, kind: str) -> Any:
        """The prefix before a prompt of that kind: as a text, or as ids."""
        if engine is not self._engine:
            hint = "make it again with lm.prefix(...)"
            raise invalid("prefix", "one of this model as it is now", "one of other weights, adapters or dtype", hint)
        if kind == "text" and self.text is None:
            raise invalid("inputs", "token ids, as the prefix was made of", "text")
        return self.text if kind == "text" else self.token_ids

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `BloomCausalLM.load_prefix` reads, with a digest of the model.

        The digest reads all weights, which takes about a second for each GB.

        Raises:
            InvalidInput: on a backend whose caches cannot be copied.
        """
        if not self.states.stored:
            hint = "use the backend numpy or numba"
            raise invalid("prefix", "a backend that copies its cache", repr(self._engine.backend), hint)
        arrays = {"token_ids": self.states.token_ids, "keys": self.states.keys, "values": self.states.values}
        arrays["model"] = np.frombuffer(digest(self._engine), np.uint8)
        if self.text is not None:
            arrays["text"] = np.frombuffer(self.text.encode(), np.uint8)
        write_safetensors(as_path("path", path), arrays)


class PrefixMethods(ABC):
    """`prefix` and `load_prefix`, for a language model."""

    @property
    @abstractmethod
    def backbone(self) -> "BloomBackbone": ...

    @property
    @abstractmethod
    def tokenizer(self) -> BloomTokenizer | None: ...

    def prefix(self, text: Any) -> Prefix:
        """Read a text or token ids once, for all prompts that begin with it.

        Returns:
            The prefix: `p.generate(prompt)` and `generate(prompt, prefix=p)` give what `generate(text + prompt)` gives:
            bit for bit on a backend whose results do not depend on how a sequence is cut into calls (numba, except
            in float64, for prompts of one length), and up to rounding on others. It takes 2 L T D numbers on the host.

        Raises:
            InvalidInput: for an empty prefix.

        Example:
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> article = lm.prefix("Article 1. Everyone has")
            >>> article.generate(" the right", max_new_tokens=4) == lm.generate(
            ...     "Article 1. Everyone has the right", max_new_tokens=4
            ... )
            True
        """
        request = read_request("text", text, self.backbone.config.vocabulary_size)
        if request.rows and not request.is_single:
            raise invalid("text", "one text, or the ids of one", "a list of them")
        whole = text if isinstance(text, str) else None
        ids = (request.rows or [[]])[0] if whole is None else self._prefix_ids(whole)
        if not ids:
            raise invalid("text", "a prefix of one token or more", "an empty one")
        return Prefix(self, whole, read_prefix(self.backbone.engine, np.array(ids, np.int64)))

    def load_prefix(self, path: str | Path) -> Prefix:
        """The prefix in a file that `Prefix.save` has written.

        Raises:
            InvalidInput: when the file is of another model: other weights, adapters, sizes or dtypes, or another
            tokenizer; BadWeights: when it is damaged.
        """
        path, engine = as_path("path", path), self.backbone.engine
        file = SafetensorsFile(path)
        arrays = {name: np.array(file.view(name)) for name in _TENSORS if name in file.entries}
        if missing := [name for name in _TENSORS[:4] if name not in arrays]:
            raise BadWeights(describe(path.name, "a saved prefix", f"a file without {missing[0]}"))
        if arrays["model"].tobytes() != digest(engine):
            hint = "make it again with lm.prefix(...).save(...)"
            raise invalid(path.name, "a prefix of this model", "one of other weights, adapters or dtype", hint)
        states = _checked(path.name, engine, arrays)
        text = _text(path.name, arrays)
        if text is not None and self._prefix_ids(text) != states.token_ids.tolist():
            raise invalid(path.name, "a prefix of this tokenizer", "one of another")
        return Prefix(self, text, states)

    def _after(self, prefix: Prefix | None, inputs: Any) -> Any:
        """The inputs with the prefix, if there is one, before each prompt."""
        if prefix is None:
            return inputs
        if not isinstance(prefix, Prefix):
            raise invalid("prefix", "what lm.prefix(...) returns", type(prefix).__name__)
        return prefix.before(self.backbone.engine, inputs)

    def _prefix_ids(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise invalid("prefix", "token ids, since this model has no tokenizer", "text")
        ids: list[int] = self.tokenizer.tokenize(text)
        return ids


def _checked(name: str, engine: Engine, arrays: dict[str, Any]) -> PrefixStates:
    """The states in a file, if they have the shapes and the dtype of this model."""
    config, ids = engine.config, arrays["token_ids"]
    if ids.ndim != 1 or not len(ids) or ids.dtype != np.int64:
        raise BadWeights(describe(f"{name}: token_ids", "int64 ids", f"{ids.dtype} of shape {ids.shape}"))
    if not 0 <= ids.min() <= ids.max() < config.vocabulary_size:
        raise BadWeights(describe(f"{name}: token_ids", f"ids in [0, {config.vocabulary_size})", str(ids.max())))
    shape = (config.num_layers, config.num_heads, len(ids), config.head_dim)
    for key in ("keys", "values"):
        array = arrays[key]
        if array.shape != shape or array.dtype != engine.policy.compute_dtype:
            expected = f"{engine.policy.compute_dtype} of shape {shape}"
            raise BadWeights(describe(f"{name}: {key}", expected, f"{array.dtype} of shape {array.shape}"))
        if not np.isfinite(array.astype(np.float32)).all():
            raise BadWeights(describe(f"{name}: {key}", "finite numbers", "NaN or infinity"))
    return PrefixStates(ids, arrays["keys"], arrays["values"])


def _text(name: str, arrays: dict[str, Any]) -> str | None:
    if "text" not in arrays:
        return None
    try:
        return bytes(arrays["text"].astype(np.uint8)).decode()
    except UnicodeDecodeError as error:
        raise BadWeights(describe(f"{name}: text", "UTF-8", str(error.reason))) from None
