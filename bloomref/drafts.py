"""Drafts of a language model: `lm.draft(...)`, and what `draft=` of generate and stream means."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomref.errors import invalid
from bloomref.generation.proposals import ModelDraft, PromptLookup
from bloomref.generation.task import Draft
from bloomref.tokenizer import BloomTokenizer

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone

PROMPT = "prompt"
_EXPECTED = "'prompt', a BloomCausalLM, the name or folder of one, or what lm.draft(...) returns"


class DraftMethods(ABC):
    """`draft`, for a language model."""

    @property
    @abstractmethod
    def backbone(self) -> "BloomBackbone": ...

    @property
    @abstractmethod
    def tokenizer(self) -> BloomTokenizer | None: ...

    @classmethod
    @abstractmethod
    def from_preset(
        cls, preset: str | Path, load_weights: bool = True, generation_config: bool = True, **kwargs: Any
    ) -> Any: ...

    def draft(self, source: Any) -> Draft:
        """Make a draft for `generate(..., draft=...)`, to be used again and again.

        Args:
            source: "prompt", which copies from prompt and continuation; a model with the same tokens, on any backend;
                or the name or folder of one, which is loaded with the backend and dtype of this model. A draft itself
                is returned as it is.

        Returns:
            The draft. Its `figures` count what was proposed and accepted; its `pace` learns how much to propose.

        Raises:
            InvalidInput: for anything else, and for a model with other tokens.

        Example:
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> lm.draft("prompt").figures.tokens_per_pass
            1.0
        """
        if isinstance(source, Draft):
            return source
        if isinstance(source, str) and source == PROMPT:
            return PromptLookup()
        if isinstance(source, str | Path):
            own = self.backbone
            source = self.from_preset(source, dtype=own.policy.name, backend=own.engine.backend)
        if not isinstance(source, DraftMethods):
            raise invalid("draft", _EXPECTED, source)
        self._check_tokens(source)
        return ModelDraft(source.backbone.engine)

    def _check_tokens(self, other: "DraftMethods") -> None:
        """Refuse a model whose ids mean other tokens, or of which there are more or fewer."""
        sizes = [model.backbone.config.vocabulary_size for model in (self, other)]
        if sizes[0] != sizes[1]:
            raise invalid("draft", f"a model with the same {sizes[0]} ids", f"{sizes[1]} ids")
        tokenizers = [model.tokenizer for model in (self, other) if model.tokenizer is not None]
        if len(tokenizers) < 2 or tokenizers[0] is tokenizers[1]:
            return
        if tokenizers[0].get_vocabulary() != tokenizers[1].get_vocabulary():
            raise invalid("draft", "a model with the tokenizer of this one", "one with other tokens")
