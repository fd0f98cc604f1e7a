"""`bloomref generate --input --output`: continue the prompts of a file; an interrupted run continues where it stopped.

Results are appended to OUTPUT.partial, each line as it is complete. Its first line has what the results depend on. At
the end they are written to OUTPUT in the order of the prompts, and the partial file is removed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomref.cli import shared
from bloomref.cli.prompt_file import PromptFile
from bloomref.errors import InvalidInput, invalid
from bloomref.formats.staging import staged_file

if TYPE_CHECKING:
    from bloomref.causal_lm import BloomCausalLM

PARTIAL = ".partial"


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that exists, unless `force`, and one that is no file: a partial file stands beside it.

    Raises:
        InvalidInput: with the reason.
    """
    if output.exists() and not output.is_file():
        raise invalid("--output", "a file to write", str(output))
    if output.exists() and not force:
        raise invalid("--output", "a file that does not exist", str(output), "--force replaces it")


def run(
    language_model: "BloomCausalLM",
    prompts: PromptFile,
    output: Path,
    conditions: Mapping[str, Any],
    options: Mapping[str, Any],
    batch: int,
) -> dict[str, Any]:
    """Generate what a partial file does not have yet, and write the results.

    Args:
        conditions: what the results depend on besides the prompts: a partial file of others is refused.
        options: of `generate_each`.
        batch: number of prompts of a batch.

    Returns:
        The figures of this run: prompts, those that an earlier run had done, tokens, seconds.

    Raises:
        InvalidInput: when the partial file belongs to another run; OSError: when a file cannot be written.
    """
    partial = output.with_name(output.name + PARTIAL)
    header = json.loads(json.dumps({"input": prompts.digest, **conditions}))
    done = _resume(partial, header, len(prompts.prompts))
    if done:
        shared.note(f"{len(done)} of {len(prompts.prompts)} prompts are in {partial}")
    began, tokens, earlier = time.perf_counter(), 0, len(done)
    try:
        with partial.open("a", encoding="utf-8") as sink, _progress(earlier, len(prompts.prompts)) as advance:
            for completion in language_model.generate_each(prompts.prompts, batch=batch, skip=set(done), **options):
                done[completion.index] = _result(prompts, completion.index, completion.continuations, completion.tokens)
                sink.write(json.dumps(done[completion.index], ensure_ascii=False) + "\n")
                sink.flush()
                tokens += sum(completion.tokens)
                advance(sum(completion.tokens))
    except BaseException:
        if not done:
            partial.unlink()
        raise
    with staged_file(output) as path:
        lines = (json.dumps(done[i], ensure_ascii=False) + "\n" for i in sorted(done))
        path.write_text("".join(lines), encoding="utf-8")
    partial.unlink()
    seconds = time.perf_counter() - began
    return {"prompts": len(done), "resumed": earlier, "tokens": tokens, "seconds": seconds}


def _result(prompts: PromptFile, index: int, continuations: list[str], tokens: list[int]) -> dict[str, Any]:
    """The line of a prompt: one continuation, or the list of several."""
    one = len(continuations) == 1
    result = {"continuation": continuations[0]} if one else {"continuations": continuations}
    numbers = {"tokens": tokens[0] if one else tokens}
    return {"index": index, "prompt": prompts.prompts[index], **prompts.others[index], **result, **numbers}


def _resume(partial: Path, header: dict[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """The results in a partial file, by index; an incomplete line at its end is cut off. A new file gets its header."""
    data = partial.read_bytes() if partial.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    first, *lines = complete.decode("utf-8", "replace").split("\n")
    if not first:
        partial.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
        return {}
    _check_header(partial, _parsed(partial, first), header)
    results = [_parsed(partial, line) for line in lines if line]
    if not all(isinstance(result.get("index"), int) and 0 <= result["index"] < count for result in results):
        raise _unusable(partial, "lines with the index of a prompt")
    if len(complete) < len(data):
        with partial.open("rb+") as file:
            file.truncate(len(complete))
    return {result["index"]: result for result in results}


def _parsed(partial: Path, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _unusable(partial, "a JSON object on each line")
    return value


def _check_header(partial: Path, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse the partial file of a run with another input or other options."""
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            there, here = (json.dumps(value.get(name), ensure_ascii=False) for value in (actual, expected))
            shown = "another input" if name == "input" else f"{name} {there} there and {here} here"
            raise _unusable(partial, "the same run", shown)


def _unusable(partial: Path, expected: str, got: str = "something else") -> InvalidInput:
    hint = "repeat the earlier command, or remove that file to begin again"
    return invalid(str(partial), expected, got, hint)


@contextmanager
def _progress(done: int, total: int) -> Iterator[Callable[[int], None]]:
    """Context manager: a progress bar on stderr, if it is a terminal. It yields what counts a prompt and its tokens."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    speed = TextColumn("{task.fields[tokens]} tokens")
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, tokens = bar.add_task("", total=total, completed=done, tokens=0), 0

        def advance(new: int) -> None:
            nonlocal tokens
            tokens += new
            bar.update(task, advance=1, tokens=tokens)

        yield advance
