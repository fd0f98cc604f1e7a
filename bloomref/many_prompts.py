"""Methods of BloomCausalLM for many prompts at once."""

from abc import abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from bloomref.argument_kinds import check_collection
from bloomref.errors import invalid
from bloomref.generation.embedded_prompts import embedded_prompts
from bloomref.generation.many import Completion, in_batches
from bloomref.generation.options import GenerationOptions
from bloomref.generation.prompts import Prompt, Request, trim
from bloomref.generation.streaming import as_texts
from bloomref.generation.task import Task
from bloomref.prefix import Prefix, PrefixMethods
from bloomref.runtime.embedding_inputs import embedding_batch
from bloomref.runtime.inputs import token_batch
from bloomref.validation import check_integer


class ManyPrompts(PrefixMethods):
    """`generate_each`, for a class that makes the tasks of generation."""

    @abstractmethod
    def _options(self, **arguments: Any) -> GenerationOptions: ...

    @abstractmethod
    def _prompts(self, name: str, request: Request) -> list[Prompt]: ...

    @abstractmethod
    def _task(
        self, prompts: Sequence[Prompt], options: GenerationOptions, prefix: Prefix | None = None, draft: Any = None
    ) -> Task: ...

    @abstractmethod
    def _start(self) -> Prompt: ...

    def _dictionary_prompts(self, inputs: Mapping[str, Any]) -> list[Prompt]:
        """The rows of a dictionary input: of `token_ids` or `inputs_embeds`, with `padding_mask`."""
        config = self.backbone.config
        embedded = embedding_batch(inputs, config.hidden_dim)
        if embedded is not None:
            return list(embedded_prompts(embedded))
        return [prompt or self._start() for prompt in trim(token_batch(inputs, config.vocabulary_size))]

    def generate_each(
        self,
        prompts: Sequence[str],
        *,
        batch: int = 16,
        skip: Container[int] = (),
        prefix: Prefix | None = None,
        draft: Any = None,
        **options: Any,
    ) -> Iterator[Completion]:
        """Continue many texts in batches of similar length; each batch's results as soon as they are there.

        Args:
            prompts: the texts. Their results are those of one `generate(prompts, ...)`, in another order.
            batch: number of prompts of a batch.
            skip: places of prompts that are left out, such as those that an interrupted run has done.
            prefix, draft: as for `generate`.
            **options: those of `generate`.

        Raises:
            InvalidInput: at the first result, as `generate`.

        Example:
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> sorted(done.index for done in lm.generate_each(["Everyone", "No one"], max_new_tokens=2))
            [0, 1]
        """
        check_integer("batch", batch, 1)
        check_collection("skip", skip, "a collection of places")
        if getattr(skip, "ndim", 1) > 1:
            raise invalid("skip", "a collection of places", f"an array of {getattr(skip, 'ndim', 1)} axes")
        check_collection("prompts", prompts, "a list of texts")
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise invalid("prompts", "a list of texts", type(prompts).__name__)
        request = Request("text", self._after(prefix, list(prompts)), False)
        whole = self._task(self._prompts("prompts", request), self._options(**options), prefix, draft)
        for places, part, generated in in_batches(whole, batch, skip):
            count = part.options.num_return_sequences
            texts = as_texts(["" for _ in places], part, generated, strip_prompt=True)
            lengths = [len(new) for _, new in generated]
            for i, place in enumerate(places):
                results = slice(i * count, (i + 1) * count)
                yield Completion(place, texts[results], lengths[results])
