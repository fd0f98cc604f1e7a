"""HeadedModel: what the three classes with a classification head share. Clauses: HEA-1, HEA-2, HEA-10, HEA-11."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np

from bloomref.argument_kinds import as_path, check_kind, check_mapping
from bloomref.backbone import BloomBackbone, Presets
from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype, cast
from bloomref.errors import BadWeights, describe, invalid
from bloomref.formats.files import read_json
from bloomref.formats.layouts import hf, hf_heads
from bloomref.formats.layouts.beside import Beside
from bloomref.generation.prompts import Prompt, read_request, right_pad
from bloomref.head_params import HeadKind, HeadParams, init_head
from bloomref.heads.labels import Labels, label_facts, number_of_labels
from bloomref.lora.adapter_set import AdapterSet
from bloomref.lora.methods import LoraConfig
from bloomref.runtime.inputs import TokenBatch, to_array
from bloomref.shapes import Array, Float
from bloomref.text_model import TextModel
from bloomref.tokenizer import BloomTokenizer
from bloomref.validation import check_integer


class HeadedModel(TextModel):
    """A backbone with a linear head: `logits = hidden · weightᵀ + bias`.

    Args:
        backbone: the model.
        tokenizer: converts text to ids. None: inputs are token ids.
        head: weights under their names in a checkpoint, such as {"score.weight": (N, D)}; None: random ones.
        num_labels: N, the number of the head's outputs; None: as the backbone's config says, else 2.
        id2label: names of the outputs 0 ... N-1; None: those of the backbone's config, else LABEL_0, LABEL_1 ...
        problem_type: "single_label_classification", "multi_label_classification" or "regression"; None: as the config
            of the backbone says.
        seed: of the random head.

    Raises:
        InvalidInput: for a wrong argument. BadWeights: for a head of another shape than the config describes.
    """

    kind: ClassVar[HeadKind]
    presets = Presets()
    head: HeadParams
    """The head's weights, in the variable dtype: those of the active adapter, if it has a head."""
    config: BloomConfig
    """The backbone's, with the labels among its other keys; no `pad_token_id` if config.json states none (HEA-4)."""

    def __init__(
        self,
        backbone: BloomBackbone,
        tokenizer: BloomTokenizer | None = None,
        *,
        head: Mapping[str, Array] | None = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        problem_type: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, tokenizer)
        if num_labels is not None:
            check_integer("num_labels", num_labels, 1)
        if head is not None:
            check_mapping("head", head)
        check_integer("seed", seed, 0)
        facts = {**backbone.config.extra, **label_facts(id2label, num_labels, problem_type)}
        if num_labels is not None and id2label is None and number_of_labels(facts) != num_labels:
            facts |= {"id2label": None, "label2id": None}  # names of another number of labels
        self._own_head = self._rounded(self._first_head(head, facts, seed))
        self._labels = Labels.read(facts, self._own_head.num_labels)
        self.head = self._head_under(backbone.adapter_set)
        extra = hf_heads.described(facts, self.kind, self._labels.names)
        self.config = backbone.config.replace(extra=extra)

    def _first_head(self, arrays: Mapping[str, Array] | None, facts: Mapping[str, Any], seed: int) -> HeadParams:
        config, count = self.backbone.config, self.kind.num_labels or number_of_labels(facts)
        if arrays is None:
            return init_head(self.kind, count or 2, config, seed)
        head = HeadParams.from_named(self.kind, config.hidden_dim, {key: _floats(key, x) for key, x in arrays.items()})
        if count not in (None, head.num_labels):
            key, rows = self.kind.weight_key, head.num_labels
            raise BadWeights(f"{key}: expected {count} rows, one for each label of the config, got {rows}")
        return head

    def _rounded(self, head: HeadParams) -> HeadParams:
        return head.map(lambda array: cast(array, self.backbone.policy.variable_dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_labels} labels) on {self.backbone!r}"

    def _head_under(self, adapters: AdapterSet) -> HeadParams:
        """The head of the active adapter that has one, else the model's own (HEA-12).

        Raises:
            BadWeights: for a head of another shape; InvalidInput: for two active adapters with a head.
        """
        heads = {name: adapters.get(name).heads for name in adapters.active}
        having = [name for name, arrays in heads.items() if self.kind.weight_key in arrays]
        if len(having) > 1:
            got = f"heads of {' and '.join(having)}"
            raise invalid("adapter", "at most one active adapter that has a head", got)
        if not having:
            return self._own_head
        head = HeadParams.from_named(self.kind, self.backbone.hidden_dim, heads[having[0]])
        if head.num_labels != self._own_head.num_labels:
            key, hint = self.kind.weight_key, f"load the model with num_labels={head.num_labels}"
            expected = f"{self._own_head.num_labels} rows, one for each label of the model"
            raise BadWeights(describe(f"{key} of adapter {having[0]!r}", expected, str(head.num_labels), hint))
        return self._rounded(head)

    # --- parts -----------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """N, the number of the head's outputs."""
        return self.head.num_labels

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return self._labels.names

    def use_adapters(self, adapters: AdapterSet) -> None:
        check_kind("adapters", adapters, AdapterSet, "the adapter_set of a model")
        head = self._head_under(adapters)
        self.backbone.use_adapters(adapters)
        self.head = head

    def add_adapter(
        self, config: LoraConfig | Mapping[str, Any] | None = None, name: str = "default", *, seed: int = 0
    ) -> None:
        """Add a new adapter with PEFT's meaning and of this model's task, which is saved with the head.

        The arguments and errors are those of `BloomBackbone.add_adapter`.
        """
        facts = {"task_type": self.kind.task_type}
        if isinstance(config, LoraConfig):
            config = replace(config, facts=facts | dict(config.facts))
        else:
            config = {} if config is None else config
            check_kind("config", config, Mapping, "a LoraConfig, or a dictionary of its fields")
            config = {"facts": facts, **config}
        super().add_adapter(config, name, seed=seed)
        adapters = self.adapter_set
        adapter = replace(adapters.get(name), heads=self._own_head.named(self.kind))
        self.use_adapters(replace(adapters, loaded={**adapters.loaded, name: adapter}))

    # --- files -----------------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls,
        preset: str | Path,
        load_weights: bool = True,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        problem_type: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A model from a folder or repository that transformers' class of this name wrote.

        Args:
            preset: as for `BloomBackbone.from_preset`.
            load_weights: False: random weights of the preset's sizes, and a random head.
            num_labels: needed for a preset without a head, such as a language model: the head is then a random one of
                so many outputs. `id2label` says the same by names.
            id2label: names of the outputs, instead of those in config.json.
            problem_type: instead of the one in config.json.
            **kwargs: as for `BloomBackbone.from_preset`.

        Raises:
            InvalidInput: for an unknown preset; BadWeights: for files that are damaged, of another model, or without
            this head.
        """
        backbone, located = BloomBackbone._load(preset, load_weights, kwargs, needs_head=False)
        folder = located.folder
        dtype = backbone.policy.variable_dtype
        head = hf_heads.read_head(folder, cls.kind, backbone.hidden_dim, dtype) if load_weights else None
        arrays = None if head is None else head.named(cls.kind)
        for adapter in backbone.adapter_set.loaded.values() if arrays is None else ():
            # the head of an adapter that is given as the model
            arrays = {key: array for key, array in adapter.heads.items() if key in cls.kind.keys} or None
        if arrays is None and load_weights and num_labels is None and id2label is None:
            raise _no_head(cls.kind, folder)
        model = cls(
            backbone,
            BloomTokenizer.find(located.tokenizer_folder),
            head=arrays,
            num_labels=num_labels,
            id2label=id2label,
            problem_type=problem_type,
            seed=kwargs.get("seed", 0),
        )
        changes = {name: value for name, value in hf_heads.differences(folder).items() if name not in kwargs}
        model.config, model._beside = model.config.replace(**changes), Beside.read(folder)
        return model

    def save_to_preset(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write backbone, head, labels and tokenizer as a folder that transformers' class of this name loads.

        Active adapters are merged. `overwrite`, and what an interrupted call leaves, are those of
        `BloomBackbone.save_to_preset`.

        Raises:
            InvalidInput: a folder in use.
        """
        config, params = self.adapter_set.merged()
        is_tied = self.config.tie_word_embeddings and config.tie_word_embeddings
        with TemporaryDirectory() as folder:
            if self.tokenizer is not None:
                self.tokenizer.save(Path(folder))
            self._beside.write(Path(folder), None)
            hf.save(
                as_path("path", path),
                self.config.replace(tie_word_embeddings=is_tied),
                replace(params, lm_head=None),
                tokenizer_from=Path(folder),
                head=self.head.named(self.kind),
                overwrite=overwrite,
            )

    # --- logits ----------------------------------------------------------------------------------

    def _project(self, hidden: Float[Array, "... D"]) -> Float[Array, "... N"]:
        """The head's product, in the accumulation dtype, not rounded (HEA-2)."""
        compute = self.backbone.policy.compute_dtype
        dtype = accumulation_dtype(compute)
        head = self.head.map(lambda array: cast(array, compute).astype(dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            logits = hidden.astype(dtype) @ head.weight.T
            return logits if head.bias is None else logits + head.bias

    def _rows(self, name: str, inputs: object) -> list[list[int]]:
        """The token ids of texts, or of lists of ids. None of them is empty.

        Texts have the special tokens of the tokenizer's post-processor, as in transformers' pipelines.
        """
        request = read_request(name, inputs, self.backbone.config.vocabulary_size)
        rows = request.rows
        if request.kind == "text":
            rows = self._need_tokenizer(name).tokenize(request.rows, add_special_tokens=True)
        for index, row in enumerate(rows):
            if not row:
                raise invalid(f"{name}[{index}]", "at least one token", "none")
        return rows

    def _need_tokenizer(self, name: str) -> BloomTokenizer:
        if self.tokenizer is None:
            raise invalid(name, "token ids, since this model has no tokenizer", "text", "pass token ids")
        return self.tokenizer


def _floats(name: str, value: object) -> Array:
    array = to_array(name, value)
    if array.dtype.kind not in "fV":  # V: bfloat16
        raise invalid(name, "an array of floating numbers", f"dtype {array.dtype}")
    return array


def padded(rows: Sequence[Sequence[int]]) -> TokenBatch:
    """One batch in which every row begins at the first position; padding has id 0."""
    return right_pad([Prompt.of(row) for row in rows], 0)


def _no_head(kind: HeadKind, folder: Path) -> BadWeights:
    names = read_json(folder / hf.CONFIG).get("architectures") or ["no head"]
    hint = "in Python, from_preset(..., num_labels=2) puts a random one on it"
    return BadWeights(f"{kind.weight_key}: expected the head of a {kind.architecture}, got {names[0]}; {hint}")
