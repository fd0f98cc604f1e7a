"""TextModel: a backbone with a tokenizer, the base of the language model and of the classifiers."""

from bloomref.backbone import BloomBackbone
from bloomref.errors import invalid
from bloomref.formats.layouts.beside import Beside
from bloomref.lora.adapter_set import AdapterSet
from bloomref.lora.methods import LoraMethods
from bloomref.params import Params
from bloomref.tokenizer import BloomTokenizer


class TextModel(LoraMethods):
    """A backbone with a tokenizer. Its adapters and weights are the backbone's.

    Args:
        backbone: the model.
        tokenizer: converts text to ids. None: inputs are token ids.

    Raises:
        InvalidInput: for an object of another class.
    """

    def __init__(self, backbone: BloomBackbone, tokenizer: BloomTokenizer | None = None) -> None:
        if not isinstance(backbone, BloomBackbone):
            raise invalid("backbone", "a BloomBackbone", type(backbone).__name__)
        if tokenizer is not None and not isinstance(tokenizer, BloomTokenizer):
            raise invalid("tokenizer", "a BloomTokenizer or None", type(tokenizer).__name__)
        self._backbone, self._tokenizer, self._beside = backbone, tokenizer, Beside()

    @property
    def backbone(self) -> BloomBackbone:
        return self._backbone

    @property
    def tokenizer(self) -> BloomTokenizer | None:
        return self._tokenizer

    @property
    def adapter_set(self) -> AdapterSet:
        return self.backbone.adapter_set

    def use_adapters(self, adapters: AdapterSet) -> None:
        self.backbone.use_adapters(adapters)

    @property
    def params(self) -> Params:
        """The backbone's weights, in the variable dtype."""
        return self.backbone.params

    @property
    def trainable(self) -> bool:  # type: ignore[override]
        """False if the backbone's weights are frozen."""
        return self.backbone.trainable
