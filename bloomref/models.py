"""KerasHub's namespace `keras_hub.models` for BLOOM: its examples run with `import bloomref as keras_hub`.

The base classes choose the class of a preset by its config.json. BLOOM is the only architecture here.
"""

from abc import ABC
from pathlib import Path
from typing import Any

from bloomref.backbone import BloomBackbone, Presets
from bloomref.causal_lm import BloomCausalLM
from bloomref.tokenizer import BloomTokenizer

__all__ = ["Backbone", "BloomBackbone", "BloomCausalLM", "BloomTokenizer", "CausalLM", "Tokenizer"]


class Backbone(ABC):  # noqa: B024 (its subclasses are registered below)
    """Base class of the models without a head. `BloomBackbone` is one.

    Example:
        >>> model = Backbone.from_preset("bloom_tiny_udhr", load_weights=False)
        >>> type(model).__name__, isinstance(model, Backbone)
        ('BloomBackbone', True)
    """

    presets = Presets()

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **kwargs: Any) -> BloomBackbone:
        """A model of the class that the preset's config.json names, by `BloomBackbone.from_preset`.

        Raises:
            BadWeights: for a preset of another architecture; InvalidInput, Unsupported: as `BloomBackbone.from_preset`.
        """
        return BloomBackbone.from_preset(preset, load_weights, **kwargs)


class CausalLM(ABC):  # noqa: B024 (its subclasses are registered below)
    """Base class of the language models. `BloomCausalLM` is one."""

    presets = Presets()

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **kwargs: Any) -> BloomCausalLM:
        """A model of the class that the preset's config.json names, by `BloomCausalLM.from_preset`.

        Raises:
            BadWeights: for a preset of another architecture; InvalidInput, Unsupported: as `BloomCausalLM.from_preset`.
        """
        return BloomCausalLM.from_preset(preset, load_weights, **kwargs)


class Tokenizer(ABC):  # noqa: B024 (its subclasses are registered below)
    """Base class of the tokenizers. `BloomTokenizer` is one."""

    presets = Presets()

    @classmethod
    def from_preset(cls, preset: str | Path, **kwargs: Any) -> BloomTokenizer:
        """The tokenizer of a preset. The arguments and errors are those of `BloomTokenizer.from_preset`."""
        return BloomTokenizer.from_preset(preset, **kwargs)


Backbone.register(BloomBackbone)
CausalLM.register(BloomCausalLM)
Tokenizer.register(BloomTokenizer)
