"""BloomCausalLM: a backbone with its tokenizer, that generates text and scores it."""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Union, Unpack, overload

from bloomref.argument_kinds import as_path, check_mapping, check_word
from bloomref.backbone import BloomBackbone, Presets
from bloomref.decodable import Vocabulary
from bloomref.drafts import DraftMethods
from bloomref.errors import InvalidInput, invalid
from bloomref.formats.generation_config import read
from bloomref.formats.layouts.beside import Beside
from bloomref.generation import search
from bloomref.generation.model_defaults import NEUTRAL, ModelDefaults
from bloomref.generation.options import GenerationArguments, GenerationOptions
from bloomref.generation.pairs import Reader, read_pairs
from bloomref.generation.prompts import Prompt, Request, read_request
from bloomref.generation.score_options import ScoreArguments, ScoreOptions
from bloomref.generation.scoring import Score, Scoring
from bloomref.generation.scoring_bar import counted
from bloomref.generation.speculation import check_speculation
from bloomref.generation.stopping import Stopping
from bloomref.generation.streaming import as_dictionary, as_rows, pieces
from bloomref.generation.task import Draft, Task
from bloomref.many_prompts import ManyPrompts
from bloomref.prefix import Prefix
from bloomref.runtime.inputs import labelled_batch, named_inputs
from bloomref.shapes import Array, Float
from bloomref.text_model import TextModel
from bloomref.tokenizer import BloomTokenizer
from bloomref.training_methods import TrainingMethods
from bloomref.validation import check_bool

StopTokens = Literal["auto"] | int | Sequence[int] | None
DraftSource = Union[str, Path, "BloomCausalLM", Draft, None]


class BloomCausalLM(TextModel, ManyPrompts, DraftMethods, TrainingMethods):
    """A BLOOM language model: continues text, scores it, and can be trained.

    Args:
        backbone: the model.
        tokenizer: converts text to ids. None: prompts are token ids. It may have more ids than the backbone's
            embedding: a text that needs one of them is refused.
        generation_config: settings of generation in transformers' names, for what the arguments of `generate` leave
            open (GEN-16). The attribute of this name may be replaced.

    Example:
        >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
        >>> text = lm.generate("Everyone has", max_new_tokens=8)
        >>> text.startswith("Everyone has")
        True
    """

    presets = Presets()

    def __init__(
        self,
        backbone: BloomBackbone,
        tokenizer: BloomTokenizer | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, tokenizer)
        self._decodable: Vocabulary | None = None
        if generation_config is not None:
            check_mapping("generation_config", generation_config)
        self.generation_config = generation_config or {}

    @classmethod
    def from_preset(
        cls, preset: str | Path, load_weights: bool = True, generation_config: bool = True, **kwargs: Any
    ) -> "BloomCausalLM":
        """Backbone, tokenizer and generation settings of a preset.

        A folder without tokenizer files gives a model that takes and returns token ids.

        Args:
            preset: as for `BloomBackbone.from_preset`, like `load_weights` and the other arguments.
            generation_config: False: ignore `generation_config.json`, and the keys of `config.json` that replace it.
        """
        check_bool("generation_config", generation_config)
        backbone, located = BloomBackbone._load(preset, load_weights, kwargs)
        model = cls(backbone, BloomTokenizer.find(located.tokenizer_folder))
        model._beside = Beside.read(located.folder)
        if generation_config:
            model.generation_config = read(located.folder, NEUTRAL, kwargs)
        return model

    def save_to_preset(
        self, path: str | Path, format: Literal["hf", "keras"] = "hf", *, overwrite: bool = False
    ) -> None:
        """Write backbone and tokenizer as a folder that transformers ("hf") or KerasHub ("keras") loads.

        Adapters are merged. The arguments, and what an interrupted call leaves, are those of
        `BloomBackbone.save_to_preset`.

        Raises:
            InvalidInput: an unknown format, a folder in use, or a model that the layout cannot express.
        """
        check_word("format", format, ("hf", "keras"))
        from bloomref.formats.layouts import hf, keras

        layout = hf if format == "hf" else keras
        with TemporaryDirectory() as folder:
            if self.tokenizer is not None:
                self.tokenizer.save(Path(folder))
            self._beside.write(Path(folder), self.generation_defaults.stored())
            layout.save(
                as_path("path", path), *self.adapter_set.merged(), tokenizer_from=Path(folder), overwrite=overwrite
            )

    # --- logits ----------------------------------------------------------------------------------

    def logits(self, inputs: Any) -> Float[Array, "B T V"]:
        """Logits at every position, in float32 (float64 for a float64 model).

        Args:
            inputs: `{"token_ids": (B, T), "padding_mask": (B, T)}`, as for the backbone.

        Raises:
            InvalidInput: for wrong inputs; the message names the key, the expected and the actual value.
        """
        return self.backbone.engine.logits(self.backbone(inputs))

    def __call__(self, inputs: Any) -> Float[Array, "B T V"]:
        """Return the logits of `inputs`: another name of `logits`."""
        return self.logits(inputs)

    def loss_and_gradients(self, inputs: Any) -> tuple[float, dict[str, Array]]:
        """The mean cross-entropy of the next tokens, in nats, and its gradient by each of `trainable_variables()`.

        Args:
            inputs: `{"token_ids": (B, T), "padding_mask": (B, T)}`, as for the backbone, and `"labels": (B, T)`: the
                token at each position, not shifted, or -100 to ignore it. Without labels, every real token counts.

        Returns:
            The loss, and the gradients by variable name. A gradient has the shape of its variable, in float32 (float64
            for a float64 model). There is no dropout. Clauses: GRD-1 ... GRD-13.

        Raises:
            InvalidInput: for wrong inputs; the message names the key, the expected and the actual value. Unsupported:
            on a backend without gradients.
        """
        batch, labels = labelled_batch(inputs, self._vocabulary_size)
        variables, adapters = self.trainable_variables(), self.adapter_set
        if not variables or not adapters.changes_weights:
            loss, _, gradients = self.backbone.engine.loss_and_gradients(batch, labels, variables.__contains__)
            return loss, {name: gradient.reshape(variables[name].shape) for name, gradient in gradients.items()}
        sources = adapters.gradient_sources()
        loss, _, gradients = self.backbone.engine.loss_and_gradients(batch, labels, sources.__contains__)
        return loss, adapters.gradients(gradients)

    # --- generation ------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        inputs: str,
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> str: ...
    @overload
    def generate(
        self,
        inputs: list[str],
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        inputs: list[int],
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> list[int]: ...
    @overload
    def generate(
        self,
        inputs: list[list[int]],
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> list[list[int]]: ...
    @overload
    def generate(
        self,
        inputs: Mapping[str, Any],
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> dict[str, Array]: ...
    def generate(
        self,
        inputs: Any = None,
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        strip_prompt: bool = False,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Any,
    ) -> Any:
        """Continue prompts. The result has the form of the input.

        Args:
            inputs: a text, or a list of texts; the ids of a prompt, or a list of them (of any lengths); or
                `{"token_ids": (B, T), "padding_mask": (B, T)}`, padded in any way, for which the result is such a
                dictionary, padded on the right. An empty prompt starts from `<s>`.
            max_length: maximum number of tokens of prompt and continuation together.
            stop_token_ids: "auto" (the end token), None (none), an id or ids. The result includes the id that ended it.
            strip_prompt: return only the continuation.
            prefix: what every prompt begins with, read before (`prefix`). It is part of the prompt, and of the result.
            draft: proposes tokens, of which the model checks several in one pass: "prompt", which copies from the text;
                a smaller model with the same tokens, or its name; or what `draft` returns. The result is the same, bit
                for bit (GEN-21). For greedy search and sampling, on a backend with equal bits, such as numba.
            **options: the fields of `bloomref.GenerationOptions`, in transformers' names:
                `max_new_tokens` (128 without any length), `min_new_tokens`; sampling by `temperature` (0 is greedy),
                `top_k`, `top_p`, `min_p`, `typical_p`, `seed`, `do_sample`; beam search by `num_beams`,
                `length_penalty`, `early_stopping`; contrastive search by `penalty_alpha` with `top_k`;
                `num_return_sequences`, `best_of`; `repetition_penalty`, `no_repeat_ngram_size`, `logit_bias`,
                `bad_words_ids`, `suppress_tokens`; `stop_strings`, `eos_token_id`, `pad_token_id`. Greedy is the
                default.

        With `num_return_sequences` n the result is a list in which the n results of each prompt stand side by side.

        The attribute `generation_config`, the settings in the model's files, decides what these arguments leave open.
        A text ends after the stop string that ended it, never inside a character; special tokens of the continuation
        are not shown. The result of a prompt does not depend on the other prompts of the batch; row i with `seed` draws
        the tokens of a single prompt with `seed + i`. Among tokens with equal logits the lowest id is chosen. Ids
        without a token in the tokenizer are never chosen. A row ends when no id may be chosen.

        Raises:
            InvalidInput: for a wrong argument; the message names it, the expected and the actual value. BadWeights: for
            logits that are not finite. Unsupported: for a draft on another backend.
        """
        if inputs is None:
            inputs, options = named_inputs(options)
        inputs = self._after(prefix, inputs)
        chosen = self._options(max_length=max_length, stop_token_ids=stop_token_ids, **options)
        check_bool("strip_prompt", strip_prompt)
        if isinstance(inputs, Mapping):
            task = self._task(self._dictionary_prompts(inputs), chosen, draft=draft)
            return as_dictionary(task.results(search.generate(task)), self._pad_id(chosen), strip_prompt)
        request = read_request("inputs", inputs, self._vocabulary_size)
        task = self._task(self._prompts("inputs", request), chosen, prefix, draft)
        generated = task.results(search.generate(task))
        results = as_rows(request, task, generated, strip_prompt)
        return results[0] if request.is_single and chosen.num_return_sequences == 1 else results

    def stream(
        self,
        prompt: str | Sequence[int],
        max_length: int | None = None,
        stop_token_ids: StopTokens = "auto",
        prefix: Prefix | None = None,
        draft: DraftSource = None,
        **options: Unpack[GenerationArguments],
    ) -> Generator[str, None, int]:
        """The continuation of one text, or of its ids, in pieces, each as soon as it is final.

        A piece never ends within a character, and the pieces joined are `generate(..., strip_prompt=True)`. Beam search
        yields nothing before its end. Closing the iterator ends the generation. The generator's return value is the
        number of generated tokens, including the stop token.

        Raises:
            InvalidInput: at once, as `generate`.

        Example:
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> "".join(lm.stream("Everyone has", max_new_tokens=8)) == lm.generate(
            ...     "Everyone has", max_new_tokens=8, strip_prompt=True
            ... )
            True
        """
        request = read_request("prompt", self._after(prefix, prompt), self._vocabulary_size)
        if not request.is_single or (request.kind == "ids" and self.tokenizer is None):
            raise invalid("prompt", "a text, or the ids of one and a tokenizer", prompt, "generate takes all others")
        arguments = {"num_return_sequences": 1, **options}
        chosen = self._options(max_length=max_length, stop_token_ids=stop_token_ids, **arguments)
        if chosen.num_return_sequences > 1 or chosen.best_of is not None:
            raise InvalidInput("stream: expected one result, got num_return_sequences or best_of; use generate")
        return pieces(self._task(self._prompts("prompt", request), chosen, prefix, draft))

    @property
    def generation_defaults(self) -> ModelDefaults:
        """`generation_config`, with the rules that join it with the arguments of a call."""
        end = None if self.tokenizer is None else self.tokenizer.end_token_id
        return ModelDefaults(self.generation_config, self._vocabulary_size, self.backbone.config.end_token_ids, end)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends by default. Training ends each document with the first."""
        return self.generation_defaults.end_ids()

    def _options(self, **arguments: Any) -> GenerationOptions:
        options = self.generation_defaults.options(arguments)
        options.check_ids(self._vocabulary_size)
        if options.stop_bytes:
            self._need_tokenizer("stop_strings")
        return options

    def _prompts(self, name: str, request: Request) -> list[Prompt]:
        texts = request.kind == "text"
        rows = self._need_tokenizer(name).as_prompts(request.rows) if texts else request.rows
        return [Prompt.of(ids) if ids else self._start() for ids in rows]

    def _task(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        prefix: Prefix | None = None,
        draft: DraftSource = None,
    ) -> Task:
        budgets, stopping = [options.budget(len(prompt)) for prompt in prompts], self._stopping(options)
        states, forbidden = None if prefix is None else prefix.states, self._vocabulary.forbidden
        if draft is not None:
            check_speculation(self.backbone.engine, options)
            draft = self.draft(draft)
        return Task(self.backbone.engine, prompts, budgets, options, stopping, forbidden, prefix=states, draft=draft)

    def _stopping(self, options: GenerationOptions) -> Stopping:
        ids = options.stop_ids
        if ids is None:
            ids = self.end_token_ids
        return Stopping(frozenset(ids), options.stop_bytes, self._vocabulary.token_bytes)

    def _pad_id(self, options: GenerationOptions) -> int:
        own = self._special_id("pad_token_id", "pad_token_id") or 0
        return own if options.pad_token_id is None else options.pad_token_id

    # --- score -----------------------------------------------------------------------------------

    @overload
    def score(self, text: str, context: str | None = None, **options: Unpack[ScoreArguments]) -> Score: ...
    @overload
    def score(
        self, text: list[str], context: str | list[str] | None = None, **options: Unpack[ScoreArguments]
    ) -> list[Score]: ...
    @overload
    def score(self, text: list[int], context: list[int] | None = None, **options: Unpack[ScoreArguments]) -> Score: ...
    @overload
    def score(
        self,
        text: list[list[int]],
        context: list[int] | list[list[int]] | None = None,
        **options: Unpack[ScoreArguments],
    ) -> list[Score]: ...
    def score(self, text: Any, context: Any = None, **options: Unpack[ScoreArguments]) -> Score | list[Score]:
        """Log-likelihood, perplexity and bits per byte of a text, or of a continuation behind its context.

        Args:
            text: a text, the ids of one, or a list of these.
            context: the text or ids before `text`; for a list, one for all or one for each. With None the first token
                is not scored, since no token predicts it; with an empty context it is predicted from `<s>`.
            **options: `window` and `stride` score a long text in windows of that many tokens, which start every
                `stride` tokens (half a window if only `window` is passed; windows of 2048 if only `stride` is);
                `top_logprobs=k` also returns the k likeliest tokens in the place of each scored token;
                `progress=True` shows a bar on stderr.

        Context and continuation are tokenized together, and the tokens that the context alone does not explain are
        scored: those after the longest common prefix with the context's own tokens, without white space at its end
        (SCO-3). A token across the join belongs to the continuation, so every character of `text` is in a scored token.
        Without a window a text is one context, of at most 16384 tokens.

        Raises:
            InvalidInput: names the argument, or the text in a list by its index, the expected and the actual value;
            also for a text of which no token can be scored. BadWeights: when logits are not finite. Unsupported: when
            a context is too long. Clauses: SCO-1 ... SCO-8.

        Example:
            >>> lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
            >>> lm.score(" right", context="Everyone has the").num_bytes
            6
        """
        chosen = ScoreOptions.create(**options)
        items, is_single = read_pairs(self._reader, text, context)
        vocabulary = self._vocabulary
        with counted(chosen.progress, sum(len(item.token_ids) - item.start for item in items)) as report:
            scoring = Scoring(chosen, vocabulary.forbidden, vocabulary.count_bytes, report)
            scores = scoring.score(self.backbone.engine, items)
        return scores[0] if is_single else scores

    @property
    def _reader(self) -> Reader:
        return Reader(
            self._vocabulary_size,
            lambda texts: self._need_tokenizer("text").tokenize(texts),
            lambda text: self._need_tokenizer("text").lost_characters(text),
            self._start_id,
        )

    # --- vocabulary ------------------------------------------------------------------------------

    @property
    def _vocabulary_size(self) -> int:
        return self.backbone.config.vocabulary_size

    @property
    def _vocabulary(self) -> Vocabulary:
        if self._decodable is None or len(self._decodable.forbidden) != self._vocabulary_size:
            self._decodable = Vocabulary(self.tokenizer, self._vocabulary_size)
        return self._decodable

    def _need_tokenizer(self, name: str) -> BloomTokenizer:
        if self.tokenizer is None:
            hint = "pass token ids, or BloomCausalLM(backbone, BloomTokenizer.from_preset(...))"
            raise invalid(name, "token ids, since this model has no tokenizer", "text", hint)
        return self.tokenizer

    def _special_id(self, of_tokenizer: str, of_config: str) -> int | None:
        token_id: int | None = None if self.tokenizer is None else getattr(self.tokenizer, of_tokenizer)
        token_id = getattr(self.backbone.config, of_config) if token_id is None else token_id
        return token_id if token_id is not None and token_id < self._vocabulary_size else None

    def _start_id(self) -> int:
        token_id = self._special_id("start_token_id", "bos_token_id")
        if token_id is None:
            raise InvalidInput("inputs: expected a prompt, got an empty one; this model has no <s> to start from")
        return token_id

    def _start(self) -> Prompt:
        """The prompt that replaces an empty one: the token `<s>`."""
        return Prompt.of([self._start_id()])
