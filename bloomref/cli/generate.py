"""`bloomref generate`: continue a text, and print the continuation as it is generated; or continue those of a file."""

import json as parser
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli import generate_file, prompt_file, shared
from bloomref.cli.drafted import Drafted
from bloomref.errors import invalid
from bloomref.generation.options import GenerationArguments

if TYPE_CHECKING:
    from bloomref.causal_lm import BloomCausalLM

DEFAULT_NEW_TOKENS = 64
# the options of one panel of `--help`
sampling = partial(typer.Option, rich_help_panel="Sampling")
search = partial(typer.Option, rich_help_panel="Beam search and contrastive search")
repetition = partial(typer.Option, rich_help_panel="Repetition and length")
files = partial(typer.Option, rich_help_panel="Prompts of a file")
speed = partial(typer.Option, rich_help_panel="Speed")


def command(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads standard input.")] = None,
    model: shared.Model = shared.DEFAULT_PRESET,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", help="Largest number of new tokens. Default: the model's, or 64."),
    ] = None,
    stop_strings: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop string, which ends the text; may be repeated.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="PROMPT is a message to a chat model, or a JSON array of messages."),
    ] = False,
    adapter: shared.AdapterOption = None,
    no_generation_config: Annotated[
        bool, typer.Option("--no-generation-config", help="Ignore the model's generation_config.json.")
    ] = False,
    temperature: Annotated[
        float | None, sampling(help="Sample; lower is closer to greedy. Without a sampling option: greedy search.")
    ] = None,
    top_k: Annotated[int | None, sampling(help="Sample among the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, sampling(help="Sample among the fewest tokens whose probabilities sum to p.")
    ] = None,
    min_p: Annotated[
        float | None, sampling(help="Sample among tokens at least p times as likely as the most likely one.")
    ] = None,
    typical_p: Annotated[
        float | None, sampling(help="Sample among the most typical tokens whose probabilities sum to p.")
    ] = None,
    best_of: Annotated[int | None, sampling(help="Draw so many texts and print the likeliest.")] = None,
    seed: Annotated[int | None, sampling(help="Makes sampling repeatable.")] = None,
    num_beams: Annotated[int | None, search(help="Beam search with this number of beams.")] = None,
    length_penalty: Annotated[float | None, search(help="Beam search: above 0 prefers longer texts.")] = None,
    num_return_sequences: Annotated[int | None, search(help="Number of results, of sampling or beam search.")] = None,
    penalty_alpha: Annotated[float | None, search(help="Contrastive search; needs --top-k.")] = None,
    repetition_penalty: Annotated[float | None, repetition(help="Above 1 makes repeated tokens less likely.")] = None,
    no_repeat_ngram_size: Annotated[int | None, repetition(help="No n-gram of this size occurs twice.")] = None,
    min_new_tokens: Annotated[int | None, repetition(help="No stop token before so many new tokens.")] = None,
    input: Annotated[
        Path | None,
        files("--input", help="Continue the prompts of a .jsonl or .txt file.", metavar="FILE"),
    ] = None,
    output: Annotated[
        Path | None,
        files("--output", "-o", help="With --input: the .jsonl file of results.", metavar="FILE"),
    ] = None,
    batch: Annotated[int, files(min=1, help="With --input: prompts of a batch.")] = 16,
    force: Annotated[bool, files("--force", help="Replace OUTPUT.")] = False,
    draft: Annotated[
        str | None,
        speed(help="Faster, with the same result: prompt (copy from the text), or a smaller model with its tokens."),
    ] = None,
    backend: shared.Backend = "auto",
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Continue PROMPT, or the prompts of a file: an interrupted run with --input continues where it stopped.

    Example: bloomref generate "Everyone has the right to" -n 40 --temperature 0.8 --seed 1

    Example: bloomref generate --chat "What is a mask?" -m hf://user/chat-model

    Example: bloomref generate --input prompts.jsonl --output results.jsonl -n 40
    """
    generation_config = not no_generation_config
    names = GenerationArguments.__annotations__.keys()
    options = {name: value for name, value in locals().items() if name in names and value is not None}
    _check_forms(prompt, input, output, chat, options)
    if input is not None and output is not None:
        generate_file.check_output(output, force)
        prompts = prompt_file.read(input)
        language_model = shared.load_on(backend, model, dtype, revision, json, adapter, generation_config)
        conditions: dict[str, Any] = {"model": model, "revision": revision, "dtype": dtype, "adapter": adapter}
        conditions |= {"generation_config": _settings_of(language_model, options), **options}
        drafted = Drafted.of(language_model, draft)
        arguments = options | drafted.arguments  # a draft changes no result: it is no condition
        figures = generate_file.run(language_model, prompts, output, conditions, arguments, batch)
        _report(figures | drafted.report(), output, json)
        drafted.show(json)
        return
    text = shared.text_or_stdin(prompt, "prompt")
    language_model = shared.load_on(backend, model, dtype, revision, json, adapter, generation_config)
    shared.tokenizer_of(language_model)
    from_files, drafted = _settings_of(language_model, options), Drafted.of(language_model, draft)
    if not chat and (options.keys() | from_files.keys()) & {"num_return_sequences", "best_of"}:
        _show_results(language_model, text, options, from_files, model, json, drafted)
        return
    prompt_or_ids = _conversation(language_model, text) if chat else text
    stream = language_model.stream(prompt_or_ids, **options, **drafted.arguments)
    began = time.perf_counter()
    if not json and not chat:
        typer.echo(text, nl=False, color=True)
    continuation, count = _show(stream, quiet=json)
    seconds = time.perf_counter() - began
    if json:
        report = {"model": model, "prompt": text, "continuation": continuation, "tokens": count, "seconds": seconds}
        run = {"backend": language_model.backbone.engine.backend, "dtype": language_model.backbone.policy.name}
        settings = {"options": options, "generation_config": from_files}
        shared.print_json(report | run | settings | drafted.report())
        return
    typer.echo()
    shared.note(f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.1f} tokens/s ({model})")
    drafted.show(json)


def _settings_of(language_model: "BloomCausalLM", options: dict[str, Any]) -> dict[str, Any]:
    """The settings that the model's files add to the options, told on stderr; sets the default length in `options`."""
    defaults, end = language_model.generation_defaults, shared.tokenizer_of(language_model).end_token_id
    joined = defaults.join(options)
    if not joined.arguments.keys() & {"max_new_tokens", "max_length"}:
        options["max_new_tokens"] = DEFAULT_NEW_TOKENS
    used = {name: value for name, value in joined.used.items() if name != "eos_token_id"}
    if set(defaults.ids("eos_token_id")) - {end}:
        used["eos_token_id"] = defaults.values["eos_token_id"]
    dropped = joined.unused if options.keys() & {"num_beams", "penalty_alpha"} else ()
    parts = [f"{name}={value!r}" for name, value in used.items()] + [f"not {name}" for name in dropped]
    if parts:
        shared.note(f"{defaults.source}: {', '.join(parts)} (--no-generation-config ignores it)")
    return used


def _show(stream: Generator[str, None, int], quiet: bool) -> tuple[str, int]:
    """Print each chunk unless `quiet`. Returns the continuation and the number of generated tokens."""
    pieces: list[str] = []
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            return "".join(pieces), end.value
        pieces.append(piece)
        if not quiet:
            typer.echo(piece, nl=False, color=True)


def _conversation(language_model: "BloomCausalLM", text: str) -> list[int]:
    """The ids of a message, or of a JSON array of messages, up to the beginning of the answer."""
    messages: Any = [{"role": "user", "content": text}]
    if text.lstrip().startswith("[{"):
        try:
            messages = parser.loads(text)
        except ValueError as error:
            expected = 'a JSON array such as [{"role": "user", "content": "Hi"}], as it begins with [{'
            raise invalid("prompt", expected, str(error)) from None
    ids: list[int] = shared.tokenizer_of(language_model).apply_chat_template(messages, add_generation_prompt=True)
    return ids


def _check_forms(
    prompt: str | None, source: Path | None, output: Path | None, chat: bool, options: dict[str, Any]
) -> None:
    """Refuse a prompt beside a file of prompts, and one of --input and --output without the other."""
    if source is None and prompt is None:
        raise invalid("prompt", "a text, - to read standard input, or --input FILE", "nothing")
    if source is not None and prompt is not None:
        raise invalid("prompt", "none with --input, which has the prompts", prompt)
    if chat and (source is not None or options.keys() & {"num_return_sequences", "best_of"}):
        raise invalid("--chat", "one conversation with one answer", "a file of prompts, or several results")
    if (source is None) is not (output is None):
        there, missing = ("--input", "--output") if output is None else ("--output", "--input")
        raise invalid(missing, f"a file as well, with {there}", "nothing")


def _show_results(
    language_model: "BloomCausalLM",
    text: str,
    options: dict[str, Any],
    from_files: dict[str, Any],
    model: str,
    json: bool,
    drafted: Drafted,
) -> None:
    """Print several results of one prompt, with an empty line between them."""
    began = time.perf_counter()
    (completion,) = language_model.generate_each([text], **options, **drafted.arguments)
    seconds = time.perf_counter() - began
    if json:
        run = {"backend": language_model.backbone.engine.backend, "dtype": language_model.backbone.policy.name}
        results = {"continuations": completion.continuations, "tokens": completion.tokens}
        settings = {"options": options, "generation_config": from_files}
        report = {"model": model, "prompt": text, **results, "seconds": seconds}
        shared.print_json(report | run | settings | drafted.report())
        return
    typer.echo("\n\n".join(text + continuation for continuation in completion.continuations))
    shared.note(f"{sum(completion.tokens)} tokens in {seconds:.2f} s ({model})")
    drafted.show(json)


def _report(figures: dict[str, Any], output: Path, json: bool) -> None:
    if json:
        shared.print_json({"output": str(output), **figures})
        return
    speed = figures["tokens"] / max(figures["seconds"], 1e-9)
    typer.echo(f"{output}: {figures['prompts']} results")
    shared.note(f"{figures['tokens']} tokens in {figures['seconds']:.2f} s, {speed:.1f} tokens/s")
