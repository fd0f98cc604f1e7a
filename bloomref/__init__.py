"""bloomref: a readable NumPy reference of the BLOOM language model that defines its specification."""

from typing import TYPE_CHECKING, Any

from bloomref import _moved
from bloomref.formats import config_json

if TYPE_CHECKING:
    from bloomref import models
    from bloomref.backbone import BloomBackbone
    from bloomref.causal_lm import BloomCausalLM
    from bloomref.config import BloomConfig
    from bloomref.errors import BadBackend, BadWeights, BloomrefError, InvalidInput, Unsupported
    from bloomref.generation.options import GenerationOptions
    from bloomref.heads.question_answering import BloomForQuestionAnswering
    from bloomref.heads.sequence_classification import BloomForSequenceClassification
    from bloomref.heads.token_classification import BloomForTokenClassification
    from bloomref.lora import LoraConfig
    from bloomref.tokenizer import BloomTokenizer

__version__ = "0.1.0"

_moved.install()
config_json.register()

# Imported on first use, so that `import bloomref` costs little more than the interpreter's own start: not even NumPy.
_HOMES = {
    "BloomBackbone": "bloomref.backbone",
    "BloomCausalLM": "bloomref.causal_lm",
    "BloomConfig": "bloomref.config",
    "BloomForQuestionAnswering": "bloomref.heads.question_answering",
    "BloomForSequenceClassification": "bloomref.heads.sequence_classification",
    "BloomForTokenClassification": "bloomref.heads.token_classification",
    "BloomTokenizer": "bloomref.tokenizer",
    "GenerationOptions": "bloomref.generation.options",
    "LoraConfig": "bloomref.lora",
    "BadBackend": "bloomref.errors",
    "BadWeights": "bloomref.errors",
    "BloomrefError": "bloomref.errors",
    "InvalidInput": "bloomref.errors",
    "Unsupported": "bloomref.errors",
}

__all__ = [
    "BadBackend",
    "BadWeights",
    "BloomBackbone",
    "BloomCausalLM",
    "BloomConfig",
    "BloomForQuestionAnswering",
    "BloomForSequenceClassification",
    "BloomForTokenClassification",
    "BloomTokenizer",
    "BloomrefError",
    "GenerationOptions",
    "InvalidInput",
    "LoraConfig",
    "Unsupported",
    "__version__",
    "models",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "models":  # KerasHub's namespace
        return import_module("bloomref.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'bloomref' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
