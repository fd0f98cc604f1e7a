"""Arguments and output forms that several subcommands share."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.dtypes import DTypePolicy
from bloomref.errors import Unsupported, invalid, visible
from bloomref.runtime import backend as interface
from bloomref.runtime import registry

if TYPE_CHECKING:
    from bloomref.causal_lm import BloomCausalLM
    from bloomref.tokenizer import BloomTokenizer

DEFAULT_PRESET = "bloom_tiny_udhr"

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A preset's name, hf://user/repo, kaggle://..., or a folder.", metavar="PRESET"),
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float64, float32, float16, bfloat16, mixed_*, or auto (as stored). Default: float32."
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub repository.")]
Backend = Annotated[
    str, typer.Option("--backend", help="numpy, another name that `bloomref backends` lists, or auto.", metavar="NAME")
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", help="LoRA adapter: a PEFT folder, a .lora.h5 file of KerasHub, hf://user/repo, a name."),
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="SECONDS", help="With a program: time limit of a request. Default: 120."),
]
Keep = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With a program: keep each request with its files, and a script that repeats it."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def load(
    model: str,
    dtype: str | None,
    revision: str | None,
    backend: str = registry.REFERENCE,
    generation_config: bool = True,
) -> "BloomCausalLM":
    """Load the model of a preset, with a spinner on stderr."""
    from bloomref.causal_lm import BloomCausalLM

    with working(f"loading {model}"):
        return BloomCausalLM.from_preset(
            model, generation_config=generation_config, dtype=dtype, revision=revision, backend=backend
        )


def load_on(
    backend: str,
    model: str,
    dtype: str | None,
    revision: str | None,
    quiet: bool,
    adapter: str | None = None,
    generation_config: bool = True,
) -> "BloomCausalLM":
    """Load a model and its adapter, compile kernels, and report the backend on stderr (BKD-7)."""
    language_model = load(model, dtype, revision, backend, generation_config)
    if adapter is not None:
        language_model.load_adapter(adapter)
        language_model = _with_its_tokens(language_model, adapter)
    engine = language_model.backbone.engine
    note(f"backend {engine.backend}")
    for sentence in registry.hidden_backends() if backend == registry.AUTO else ():
        note(sentence)
    compile_kernels(engine.runs_on, engine.policy, quiet)
    return language_model


def _with_its_tokens(language_model: "BloomCausalLM", adapter: str) -> "BloomCausalLM":
    """The model with the tokenizer beside its adapter, if that one has more ids: tokens were added with the adapter."""
    from bloomref.causal_lm import BloomCausalLM
    from bloomref.presets.resolver import resolve_adapter
    from bloomref.tokenizer import BloomTokenizer

    folder, present = resolve_adapter(adapter), language_model.tokenizer
    larger = BloomTokenizer.find(folder) if folder.is_dir() and present is not None else None
    if larger is None or present is None or larger.vocabulary_size() <= present.vocabulary_size():
        return language_model
    note(f"tokenizer of the adapter, with {larger.vocabulary_size() - present.vocabulary_size()} more ids")
    return BloomCausalLM(language_model.backbone, larger, language_model.generation_config)


def compile_kernels(backend: interface.Backend, policy: DTypePolicy, quiet: bool) -> None:
    """Compile a backend's kernels before the first token, with a spinner on stderr: it can take half a minute."""
    if not isinstance(backend, interface.SupportsCompilation) or backend.is_compiled(policy):
        return
    with nullcontext() if quiet else working("compiling kernels for this processor, once: about half a minute"):
        backend.compile(policy)


def tokenizer_of(language_model: "BloomCausalLM") -> "BloomTokenizer":
    """Return the tokenizer of a model.

    Raises:
        Unsupported: when the model has none.
    """
    if language_model.tokenizer is None:
        raise Unsupported("model: expected a folder with tokenizer files, got one without; add its tokenizer.json")
    return language_model.tokenizer


@contextmanager
def working(message: str) -> Iterator[None]:
    """Context manager: a spinner on stderr, if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text  # plain text: a path may have brackets, which are markup in a str

    with Console(stderr=True).status(Text(visible(message))):
        yield


@contextmanager
def progress_bar(message: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Context manager: a bar of `total` bytes on stderr, if it is a terminal. Its value advances it, or is None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(message, total=total)
        yield lambda count: bar.advance(task, count)


def print_json(value: Any) -> None:
    """Print a value as indented JSON. A number that is not finite, which JSON does not have, is null."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False, indent=2), color=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(message: str) -> None:
    """Print a message on stderr."""
    typer.echo(message, err=True)


def text_or_stdin(text: str | None, name: str) -> str:
    """Return the argument, or standard input if the argument is `-`.

    Args:
        text: the argument; None is refused.
        name: name of the argument in the error message.
    """
    if text == "-":
        return sys.stdin.read().removesuffix("\n")
    if text is None:
        raise invalid(name, "a text, or - to read standard input", "nothing")
    return text


def size(count: float) -> str:
    """Format a number of bytes: `1.12 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
