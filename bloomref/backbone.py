"""BloomBackbone: the model without a language-modelling head, with the interface of KerasHub's class of that name."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np

from bloomref.argument_kinds import as_path, check_kind, check_mapping, check_text, check_word
from bloomref.config import SIZES, BloomConfig
from bloomref.dtypes import DType, DTypePolicy, dtype_policy
from bloomref.errors import Unsupported, invalid
from bloomref.lora.adapter import KERAS_DEFAULT
from bloomref.lora.adapter_set import AdapterSet
from bloomref.lora.methods import LoraMethods
from bloomref.machine_memory import check_memory
from bloomref.params import Params, count_params, init_params
from bloomref.runtime import registry
from bloomref.runtime.backend import Backend
from bloomref.runtime.embedding_inputs import embedding_batch, hidden_of
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import check_token_ids, to_array, token_batch
from bloomref.shapes import Array, Float
from bloomref.validation import check_bool, check_integer, check_known

if TYPE_CHECKING:
    from bloomref.presets.adapted_models import Located

T = TypeVar("T")
_EXTRA_ARGUMENTS = (
    "apply_residual_connection_post_layernorm",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_ARGUMENTS = (*SIZES, "dropout", "layer_norm_epsilon", *_EXTRA_ARGUMENTS)


@dataclass(frozen=True)
class _RunArguments:
    """The constructor's keyword arguments that are not part of the config."""

    backend: str = registry.REFERENCE
    name: str | None = None
    trainable: bool = True
    seed: int = 0

    @classmethod
    def split(cls, arguments: Mapping[str, Any], others: tuple[str, ...]) -> tuple["_RunArguments", dict[str, Any]]:
        """Split keyword arguments into run arguments and all others.

        Raises:
            InvalidInput: for a name that is neither one of these nor among `others`, a backend or a seed that is none.
        """
        own = cls.__dataclass_fields__
        check_known(arguments, (*others, *own), "an argument of BloomBackbone")
        run = {name: value for name, value in arguments.items() if name in own}
        if not isinstance(run.get("backend", ""), (str, Backend)):
            raise invalid("backend", "the name of a backend", run["backend"])
        check_integer("seed", run.get("seed", 0), 0)
        return cls(**run), {name: value for name, value in arguments.items() if name not in own}


class Presets:
    """The class attribute `presets`: name -> summary, read from the registry on access."""

    def __get__(self, instance: object, owner: type) -> dict[str, dict[str, Any]]:
        from bloomref.presets.preset_registry import PRESETS

        return {name: preset.summary() for name, preset in PRESETS.items()}


class _FromConfig(Generic[T]):
    """A read-only attribute with a value from the model's config.

    Args:
        field: name in BloomConfig; None: the attribute's own.
    """

    def __init__(self, field: str | None = None) -> None:
        self._field = field

    def __set_name__(self, owner: type, name: str) -> None:
        self._field = self._field or name

    @overload
    def __get__(self, instance: None, owner: type) -> "_FromConfig[T]": ...
    @overload
    def __get__(self, instance: "BloomBackbone", owner: type) -> T: ...
    def __get__(self, instance: "BloomBackbone | None", owner: type) -> "T | _FromConfig[T]":
        if instance is None:
            return self
        value: T = getattr(instance.config, str(self._field))
        return value


class BloomBackbone(LoraMethods):
    """A BLOOM decoder (arXiv:2211.05100): token ids in, final hidden states out.

    Args:
        vocabulary_size: V, number of rows of the embedding matrix.
        num_layers: L, number of transformer blocks.
        num_heads: H, number of attention heads of a block. It divides hidden_dim.
        hidden_dim: D, width of the hidden states.
        intermediate_dim: F, width of the MLP's inner layer.
        dropout: probability in [0, 1), used only in calls with `training=True`.
        layer_norm_epsilon: added to the variance in every LayerNorm.
        dtype: float64, float32 (the default), float16, bfloat16, mixed_float16 or mixed_bfloat16, by name or as a NumPy
            dtype. The rounding rule is clause NUM-2.
        **kwargs: `seed` (0) of the random initial weights; `apply_residual_connection_post_layernorm` (False);
            `tie_word_embeddings` (True); `initializer_range` (0.02); `bos_token_id`, `eos_token_id`, `pad_token_id`
            (1, 2, 3); `backend` ("numpy", the reference; "numba", "cupy" or any installed one; "auto"); `name`;
            `trainable`.

    Raises:
        InvalidInput: when an argument is unknown or outside its domain.

    Example:
        >>> model = BloomBackbone(vocabulary_size=10, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=128)
        >>> model({"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 0]]}).shape
        (1, 3, 32)
    """

    presets = Presets()
    vocabulary_size = _FromConfig[int]()
    num_layers = _FromConfig[int]()
    num_heads = _FromConfig[int]()
    hidden_dim = _FromConfig[int]()
    intermediate_dim = _FromConfig[int]()
    dropout = _FromConfig[float]("hidden_dropout")
    layer_norm_epsilon = _FromConfig[float]()
    apply_residual_connection_post_layernorm = _FromConfig[bool]()
    tie_word_embeddings = _FromConfig[bool]()
    initializer_range = _FromConfig[float]()
    bos_token_id = _FromConfig[int | None]()
    eos_token_id = _FromConfig[int | tuple[int, ...] | None]()
    pad_token_id = _FromConfig[int | None]()

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.0,
        layer_norm_epsilon: float = 1e-5,
        dtype: object = None,
        **kwargs: Any,
    ) -> None:
        run, extra = _RunArguments.split(kwargs, _EXTRA_ARGUMENTS)
        config = BloomConfig(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            attention_dropout=dropout,
            hidden_dropout=dropout,
            layer_norm_epsilon=layer_norm_epsilon,
            **extra,
        )
        policy = dtype_policy(dtype)
        params = _random(config, run.seed, policy.variable_dtype)
        self._assemble(config, params, policy, run.backend, run.name, run.trainable)

    def _assemble(
        self,
        config: BloomConfig,
        params: Params,
        policy: DTypePolicy,
        backend: str | Backend = registry.REFERENCE,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        self.config = config
        self.policy = policy
        self.engine = Engine(params, config, policy, backend)
        if name is not None:
            check_text("name", name)
        self.name = name or "bloom_backbone"
        self.trainable = trainable
        self._adapters: AdapterSet | None = None

    # --- construction ----------------------------------------------------------------------------

    @classmethod
    def from_params(cls, config: BloomConfig, params: Params, dtype: object = None, **kwargs: Any) -> "BloomBackbone":
        """A model with the given weights.

        Args:
            params: the weights. The model may share their arrays: do not change them afterwards.
            dtype: as for the constructor; None: the dtype of `params`.
            **kwargs: `backend`, `name`, `trainable`, as for the constructor.

        Raises:
            InvalidInput: when the weights are not those of a model of this config.
        """
        _check_params(config, params)
        policy = dtype_policy(params.word_embedding.dtype if dtype is None else dtype)
        model = cls.__new__(cls)
        model._assemble(config, params, policy, **kwargs)
        return model

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **kwargs: Any) -> "BloomBackbone":
        """A model from a preset.

        Args:
            preset: a built-in name (`BloomBackbone.presets`), `hf://user/repo`, `kaggle://user/model/keras/variation`,
                or a local folder in Hugging Face or Keras layout. For an adapter of PEFT whose base model is a folder
                or built-in, the base is loaded with the adapter.
            load_weights: False: random weights of the preset's sizes; only the config and the tokenizer are downloaded.
            **kwargs: `dtype` (None is float32; "auto" is the dtype of the files); `revision` of a hub repository;
                `backend`; and any other argument of the constructor, which overrides the preset's value.

        Raises:
            InvalidInput: for an unknown preset; BadWeights: for files that are damaged or of another model;
            Unsupported: when an optional package or the network is missing.
        """
        return cls._load(preset, load_weights, kwargs, needs_head=False)[0]

    @classmethod
    def _load(
        cls, preset: str | Path, load_weights: bool, arguments: Mapping[str, Any], needs_head: bool = True
    ) -> tuple["BloomBackbone", "Located"]:
        """The model of `from_preset`, and the local folders of the preset.

        Without `needs_head`, an untied LM head that the files do not have is not missed: the config is read as tied.
        """
        from bloomref.formats.layouts.checkpoint import open_checkpoint
        from bloomref.presets.adapted_models import locate

        check_bool("load_weights", load_weights)
        run, changes = _RunArguments.split(arguments, (*_ARGUMENTS, "dtype", "revision"))
        dtype, revision = changes.pop("dtype", None), changes.pop("revision", None)
        if run.backend != registry.AUTO:
            registry.load(run.backend)  # a mistaken name is refused before anything is downloaded
        located = locate(preset, weights=load_weights, revision=revision)
        checkpoint = open_checkpoint(located.folder)
        config = _override(checkpoint.config, changes)
        if load_weights and not needs_head and not checkpoint.has_lm_head:
            config = config.replace(tie_word_embeddings=True)
        policy = dtype_policy(checkpoint.dtype if isinstance(dtype, str) and dtype == "auto" else dtype)
        backend = registry.choose(run.backend, config, policy)
        if load_weights:
            params = checkpoint.replace_config(config).stored(policy.variable_dtype)
        else:
            params = _random(config, run.seed, policy.variable_dtype)
        model = cls.__new__(cls)
        model._assemble(config, params, policy, backend, run.name, run.trainable)
        if load_weights and located.adapter is not None:
            model.load_adapter(located.adapter)
        return model, located

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BloomBackbone":
        """A model with random weights from the dictionary that `get_config` returns."""
        check_mapping("config", config)
        if missing := [name for name in SIZES if name not in config]:
            raise invalid("config", f"the keys {', '.join(SIZES)}", f"none called {missing[0]}")
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a dictionary, for `from_config`."""
        values: dict[str, Any] = {"name": self.name, "trainable": self.trainable, "dtype": self.policy.name}
        return values | {name: getattr(self, name) for name in _ARGUMENTS}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in SIZES)
        return f"BloomBackbone({sizes}, dtype={self.policy.name!r}): {self.count_params():,} parameters"

    # --- use -------------------------------------------------------------------------------------

    def __call__(self, inputs: Any, training: bool = False, seed: int | None = None) -> Float[Array, "B T D"]:
        """Final hidden states, in the compute dtype.

        Args:
            inputs: `{"token_ids": (B, T) integers, "padding_mask": (B, T) of 0 and 1}`.
                Without a mask all tokens are real. `"inputs_embeds": (B, T, D)` in place of ids enters the model before
                the embedding's LayerNorm (EMB-7). transformers' names `input_ids` and `attention_mask` are accepted.
            training: apply dropout.
            seed: of dropout; None: a fresh seed.

        Returns:
            (B, T, D). Positions of padding hold finite numbers without meaning.

        Raises:
            InvalidInput: for wrong inputs; the message names the key, the expected and the actual value. Unsupported:
            for dropout on a backend without it.
        """
        embedded = embedding_batch(inputs, self.config.hidden_dim)
        if embedded is not None:
            if training:
                raise Unsupported("training: expected token ids, got inputs_embeds, which have no dropout")
            return hidden_of(self.engine, embedded)
        batch = token_batch(inputs, self.config.vocabulary_size)
        return self.engine.hidden(batch, np.random.default_rng(seed) if training else None)

    def trace(self, inputs: Any, names: str = "*") -> dict[str, Array]:
        """The named intermediates (clause MOD-8) that match the pattern, in the order of computation.

        Example:
            >>> model = BloomBackbone(10, 2, 2, 32, 128)
            >>> list(model.trace({"token_ids": [[1, 2]]}, "layers.1.attention.s*"))
            ['layers.1.attention.scores']
        """
        check_text("names", names)
        batch = token_batch(inputs, self.config.vocabulary_size)
        return self.engine.trace(batch, lambda name: fnmatchcase(name, names))

    @property
    def token_embedding(self) -> "TokenEmbedding":
        """The embedding layer: ids to vectors and, with `reverse=True`, vectors to logits."""
        return TokenEmbedding(self.engine)

    def default_lora_layer_names(self) -> list[str]:
        """The layers that `enable_lora` adapts by default, by KerasHub's names."""
        return list(KERAS_DEFAULT)

    @property
    def adapter_set(self) -> AdapterSet:
        """The adapters, and the weights without them."""
        return self._adapters or AdapterSet(self.config, self.policy, self.engine.stored_params)

    def use_adapters(self, adapters: AdapterSet) -> None:
        """Run with these adapters from now on; a failure changes nothing."""
        check_kind("adapters", adapters, AdapterSet, "the adapter_set of a model")
        self.engine = self.engine.with_params(adapters.params(), adapters.config)
        self.config = adapters.config
        self._adapters = adapters if adapters.loaded else None

    @property
    def params(self) -> Params:
        """The weights, in the variable dtype."""
        return self.engine.params

    def replace_params(self, params: Params) -> None:
        """Replace the weights by others of the same config, and remove all adapters.

        Arrays may be shared, as in `from_params`.

        Raises:
            InvalidInput: as `from_params`.
        """
        _check_params(self.config, params)
        self.engine = self.engine.with_params(params)
        self._adapters = None

    def count_params(self) -> int:
        """Number of scalar weights. A tied LM head counts once."""
        return count_params(self.config)

    def save_to_preset(
        self, path: str | Path, format: Literal["hf", "keras"] = "hf", *, overwrite: bool = False
    ) -> None:
        """Write config and weights as a folder that transformers ("hf") or KerasHub
        ("keras") loads, in the variable dtype.

        Active adapters are merged into the written weights;
        `save_adapter` writes them separately. An interrupted call leaves no
        folder: files are written under temporary names and renamed.

        Args:
            path: the folder to write.
            format: layout of the folder.
            overwrite: replace the model in a folder that has one, and keep all files
                that no earlier save has written; False: refuse a folder that has any
                files. Clause: WGT-20.

        Raises:
            InvalidInput: for an unknown format, a folder in use, or a model that the layout cannot represent.
        """
        check_word("format", format, ("hf", "keras"))
        from bloomref.formats.layouts import hf, keras

        (hf if format == "hf" else keras).save(as_path("path", path), *self.adapter_set.merged(), overwrite=overwrite)


class TokenEmbedding:
    """The embedding layer, with the interface of KerasHub's `ReversibleEmbedding`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def embeddings(self) -> Float[Array, "V D"]:
        """The matrix, in the compute dtype."""
        return self._engine.word_embedding

    def __call__(self, inputs: Any, reverse: bool = False) -> Array:
        """Embedding lookup: ids (...) -> (..., D) in the compute dtype.

        With `reverse`: hidden states (..., D) -> logits (..., V), in float32 (float64 for a float64 model).
        """
        if reverse:
            return self._reverse(to_array("hidden", inputs))
        ids = to_array("token_ids", inputs)
        checked = check_token_ids(ids.reshape(1, -1), self._engine.config.vocabulary_size)
        return self.embeddings[checked.reshape(ids.shape)]

    def _reverse(self, hidden: Array) -> Array:
        width = self._engine.config.hidden_dim
        if hidden.ndim == 0 or hidden.shape[-1] != width or hidden.dtype.kind not in "fV":
            raise invalid("hidden", f"floating numbers of shape (..., {width})", f"{hidden.dtype} {hidden.shape}")
        return self._engine.project(hidden)


def _check_params(config: object, params: object) -> None:
    """Refuse weights of another model: a kernel would read past the end of an array.

    Raises:
        InvalidInput: naming the weight.
    """
    if not isinstance(config, BloomConfig):
        raise invalid("config", "a BloomConfig", type(config).__name__)
    if not isinstance(params, Params):
        raise invalid("params", "a Params", type(params).__name__)
    if len(params.layers) != config.num_layers:
        raise invalid("params", f"{config.num_layers} layers", len(params.layers))
    if (params.lm_head is None) is not config.tie_word_embeddings:
        raise invalid("params", f"{'no' if config.tie_word_embeddings else 'an'} LM head of its own", "the opposite")
    dtype = getattr(params.word_embedding, "dtype", None)
    for key, weight, array in params.named():
        got = (getattr(array, "shape", None), getattr(array, "dtype", None))
        if not isinstance(array, np.ndarray) or got != (weight.shape(config), dtype):
            raise invalid(f"params: {key}", f"shape {weight.shape(config)} in {dtype}", f"{got[0]} in {got[1]}")


def _random(config: BloomConfig, seed: int, dtype: DType) -> Params:
    check_memory("the weights", count_params(config) * dtype.itemsize)
    return init_params(config, seed, dtype)


def _override(config: BloomConfig, changes: dict[str, Any]) -> BloomConfig:
    if "dropout" in changes:
        rate = changes.pop("dropout")
        changes |= {"attention_dropout": rate, "hidden_dropout": rate}
    return config.replace(**changes)
