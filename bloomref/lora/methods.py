"""The LoRA methods of BloomBackbone and BloomCausalLM. Clauses: LRA-13 ... LRA-17."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloomref.argument_kinds import as_path, check_kind
from bloomref.errors import invalid, represented
from bloomref.formats.adapters.peft_config import LoraConfig
from bloomref.lora.adapter import DENSE_LAYERS, KERAS_DEFAULT
from bloomref.lora.adapter_set import AdapterSet
from bloomref.lora.new_adapter import new_keras, new_peft
from bloomref.params import Params
from bloomref.shapes import Array
from bloomref.validation import check_bool, check_integer, check_known

__all__ = ["LoraConfig", "LoraMethods"]


class LoraMethods(ABC):
    """Methods of a model that has a set of adapters."""

    trainable: bool

    @property
    @abstractmethod
    def adapter_set(self) -> AdapterSet:
        """The adapters, and the weights without them."""

    @abstractmethod
    def use_adapters(self, adapters: AdapterSet) -> None:
        """Run with these adapters from now on; a failure changes nothing."""

    @property
    @abstractmethod
    def params(self) -> Params:
        """The weights, in the variable dtype."""

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        """Change the size of the vocabulary, as transformers does: rows at the end are cut or added. Clause: WGT-35.

        Args:
            new_num_tokens: V, the new number of rows of the embedding; None: the present one.
            pad_to_multiple_of: round V up to a multiple of this.
            mean_resizing: new rows are near the mean of the old ones; False: normal with `initializer_range`.
            seed: of the new rows.

        Raises:
            InvalidInput: for a size below 1, and while an adapter is merged or holds rows of the present vocabulary.
        """
        adapters = self.adapter_set
        size = adapters.config.vocabulary_size if new_num_tokens is None else new_num_tokens
        check_integer("new_num_tokens", size, 1)
        check_bool("mean_resizing", mean_resizing)
        check_integer("seed", seed, 0)
        if pad_to_multiple_of is not None:
            check_integer("pad_to_multiple_of", pad_to_multiple_of, 1)
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != adapters.config.vocabulary_size:
            self.use_adapters(adapters.resize(size, mean=mean_resizing, seed=seed))

    def enable_lora(
        self,
        rank: int,
        target_layer_names: list[str] | tuple[str, ...] | None = None,
        *,
        name: str = "default",
        seed: int = 0,
    ) -> None:
        """Add a new adapter with KerasHub's meaning, and freeze all weights: `trainable_variables` are its factors.

        Args:
            rank: R, the inner dimension of the factors.
            target_layer_names: layers to adapt: `query_dense` and `value_dense` (the default), `key_dense`,
                `output_dense`, `mlp_intermediate_dense`, `mlp_output_dense`.
                Query, key and value have factors (D, H, R) and (R, K).
            name: name of the adapter.
            seed: seed of A. B is zero, so the model's results do not change yet.

        Raises:
            InvalidInput: for a rank below 1, an unknown or repeated layer name, or a name that is taken.
        """
        check_integer("rank", rank, 1)
        check_integer("seed", seed, 0)
        if target_layer_names is not None:
            check_kind(
                "target_layer_names",
                target_layer_names,
                (list, tuple),
                f"names, each once, of {', '.join(DENSE_LAYERS)}",
            )
        targets = KERAS_DEFAULT if target_layer_names is None else tuple(target_layer_names)
        are_names = all(isinstance(target, str) and target in DENSE_LAYERS for target in targets)
        if not targets or not are_names or len(set(targets)) < len(targets):
            raise invalid("target_layer_names", f"names, each once, of {', '.join(DENSE_LAYERS)}", represented(targets))
        adapters = self.adapter_set
        adapters.check_new(name)
        adapter = new_keras(name, adapters.config, rank, targets, seed, adapters.dtype)
        self.use_adapters(adapters.add(name, adapter))

    def add_adapter(
        self, config: LoraConfig | Mapping[str, Any] | None = None, name: str = "default", *, seed: int = 0
    ) -> None:
        """Add a new adapter with PEFT's meaning, and freeze all weights.

        Args:
            config: a LoraConfig, or a dictionary of its fields; None is PEFT's default, rank 8 on `query_key_value`.

        Raises:
            InvalidInput: for a config that matches no weight of this model,
            or a name in use; Unsupported: for an initialisation that PEFT alone has.
        """
        settings = config if isinstance(config, LoraConfig) else _settings({} if config is None else config)
        check_integer("seed", seed, 0)
        adapters = self.adapter_set
        adapters.check_new(name)
        adapter = new_peft(name, adapters.base, adapters.config, settings, seed, adapters.dtype)
        self.use_adapters(adapters.add(name, adapter))

    def load_adapter(self, path: str | Path, name: str = "default") -> None:
        """Load an adapter and make it the active one. If it was made for a larger vocabulary, resize the model first.

        Args:
            path: a folder of PEFT (adapter_config.json, adapter_model.safetensors), a `.lora.h5` file of KerasHub,
                `hf://user/repo` for a repository of PEFT on the Hugging Face hub, or the name of a built-in adapter.

        Raises:
            BadWeights: when files are missing, damaged or of another model; Unsupported: for another method than LoRA;
            InvalidInput: for a path that does not exist, or a name in use.
        """
        from bloomref.lora import adapter_files
        from bloomref.presets.resolver import resolve_adapter

        adapters = self.adapter_set
        adapters.check_new(name)
        adapter = adapter_files.load(resolve_adapter(path), name, adapters.config, adapters.dtype)
        self.use_adapters(adapters.add(name, adapter))

    def save_adapter(
        self, path: str | Path, name: str | None = None, *, expand: bool = False, overwrite: bool = False
    ) -> None:
        """Write an adapter: a file of KerasHub if the path ends in `.lora.h5`, else a folder of PEFT.

        Args:
            name: name of the adapter; None: the active one.
            expand: if the format has no factors of this form, write equal ones of a higher rank (LRA-14).
            overwrite: replace the adapter in the folder; False: refuse a folder that has any files (WGT-20).

        Raises:
            InvalidInput: when the format cannot represent the adapter, or the folder is in use; the message says why.
        """
        from bloomref.lora import adapter_files

        adapters = self.adapter_set
        adapter = adapters.only_active() if name is None else adapters.get(name)
        adapter_files.save(as_path("path", path), adapter, adapters.config, expand, overwrite)

    def set_adapter(self, adapter: str | Mapping[str, float] | None) -> None:
        """Activate one adapter, several with weights, or none: `set_adapter({"legal": 0.7, "style": 0.3})`.

        Raises:
            InvalidInput: for an unknown name, a weight that is not a finite number, or while adapters are merged.
        """
        self.use_adapters(self.adapter_set.activate(adapter))

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter."""
        self.use_adapters(self.adapter_set.delete(name))

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Adapter name -> its weight (0.0 if inactive), modules, ranks and number of parameters."""
        adapters = self.adapter_set
        weights = adapters.active
        return {name: {"weight": weights.get(name, 0.0), **a.summary()} for name, a in adapters.loaded.items()}

    def merge_adapter(self) -> None:
        """Merge the active adapters into the weights. `unmerge_adapter` restores the base weights bit for bit."""
        self.use_adapters(self.adapter_set.merge())

    def unmerge_adapter(self) -> None:
        """Undo `merge_adapter`."""
        self.use_adapters(self.adapter_set.unmerge())

    def assign_variables(self, variables: Mapping[str, Array]) -> None:
        """Assign factors of the active adapters, by their names in `trainable_variables`.

        Raises:
            InvalidInput: for an unknown name or another shape, or while adapters are merged.
        """
        self.use_adapters(self.adapter_set.assign(variables))

    def count_trainable_params(self) -> int:
        """Number of scalars in `trainable_variables`."""
        return sum(array.size for array in self.trainable_variables().values())

    def trainable_variables(self) -> dict[str, Array]:
        """Variable name -> array: the factors of the active adapters or,
        without adapters, all weights of a trainable model, in the shapes of Hugging Face's files (GRD-4).
        """
        adapters = self.adapter_set
        if adapters.active:
            return {} if adapters.is_merged else adapters.factors()
        if adapters.loaded or not self.trainable:
            return {}
        config = adapters.config
        return {key: array.reshape(weight.hf_shape(config)) for key, weight, array in self.params.named()}


def _settings(fields: Mapping[str, Any]) -> LoraConfig:
    check_kind("config", fields, Mapping, "a LoraConfig, or a dictionary of its fields")
    check_known(fields, LoraConfig.__dataclass_fields__, "a field of LoraConfig")
    return LoraConfig(**fields)
