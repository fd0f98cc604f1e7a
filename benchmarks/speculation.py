"""Speculative decoding on Numba: the same bits as plain decoding, and the time that a draft saves.

1. Equality: prompts of random ids, greedy and sampled, in float32 and bfloat16, on a small model of random weights.
   Ids, and the bits of the logits that chose them, must be those of plain decoding; otherwise nothing is timed.
2. Speed by acceptance: a draft that knows the model's text proposes it, each token with a given probability, and
   another token otherwise. It costs nothing, so this is the most that a draft of that acceptance saves. Random weights
   of a preset's dimensions; plain and drafted runs in turns, medians. A draft keeps what it has learnt between rounds.
3. `draft="prompt"` on the embedded preset: tokens a pass, for a text that repeats itself, for one whose prompt has it
   already (the preset is too small to copy well), and for a new one.

Example: python -m benchmarks.speculation --output benchmarks/results/speculation.json
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import command_line, describe_machine
from benchmarks.model import model_config
from bloomref import BloomBackbone, BloomCausalLM
from bloomref.generation import search
from bloomref.generation.prompts import Prompt
from bloomref.generation.task import Draft, Proposals, Row, Task

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 11},
}
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 3, 8)
"""Rows of the batches of the first part, in turns."""


class KnownText(Draft):
    """Proposes the text that the model will choose; each token is wrong with the probability 1 - acceptance."""

    def __init__(self, truth: Sequence[Sequence[int]], acceptance: float, vocabulary_size: int) -> None:
        super().__init__()
        self.truth, self._acceptance, self._size = truth, acceptance, vocabulary_size
        self._random = np.random.default_rng(0)

    def open(self, task: Task) -> Proposals:  # noqa: ARG002
        return _Known(self)

    def after(self, row: Row, count: int) -> list[int]:
        place = len(row.new_ids)
        right = self._random.random(count) < self._acceptance
        true = self.truth[row.index][place : place + count]
        return [token if ok else (token + 1) % self._size for token, ok in zip(true, right, strict=False)]


class _Known(Proposals):
    def __init__(self, draft: KnownText) -> None:
        self._draft = draft

    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        return [self._draft.after(row, count) for row, count in zip(rows, counts, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Nothing: rows keep their numbers."""


def main() -> None:
    arguments = _arguments()
    report: dict[str, Any] = {"command": command_line(), "machine": describe_machine()}
    report["equality"] = equality(arguments.prompts)
    report["speed"] = [row for rows in arguments.rows for row in speed(arguments, rows)]
    report["prompt_lookup"] = prompt_lookup(arguments.copied, arguments.rounds)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompts", type=int, default=200, help="prompts of the comparison of bits")
    add("--preset", default="bloom_560m_multi", help="preset whose dimensions are timed; the weights are random")
    add("--layers", type=int, help="reduce that model to this number of layers, for a quick run")
    add("--dtype", default="bfloat16", help="dtype of the timed model")
    add("--rows", type=int, nargs="+", default=[1, 4], help="numbers of rows that are timed")
    add("--tokens", type=int, default=64, help="new tokens of each row")
    add("--rounds", type=int, default=3, help="timed runs of each acceptance, in turns, after one that is not timed")
    add("--acceptance", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0], help="of the known draft")
    add("--copied", type=int, default=120, help="new tokens of prompt lookup")
    add("--json", action="store_true", help="print the report as JSON, not as tables")
    add("--output", type=Path, help="write the report to this JSON file")
    return parser.parse_args()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def task_of(lm: BloomCausalLM, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> Task:
    return lm._task([Prompt.of(ids) for ids in prompts], lm._options(**options))


# --- the same bits -------------------------------------------------------------------------------


def equality(count: int) -> list[dict[str, Any]]:
    """Compare so many prompts in each strategy and dtype; exits at the first difference."""
    results = []
    for dtype in DTYPES:
        lm = BloomCausalLM(BloomBackbone(500, 3, 4, 64, 256, initializer_range=0.3, dtype=dtype, backend="numba"))
        for name, options in STRATEGIES.items():
            note(f"comparing {count} prompts, {name}, {dtype}")
            results.append({"strategy": name, "dtype": dtype, **_compare(lm, count, options)})
    return results


def _compare(lm: BloomCausalLM, count: int, options: dict[str, Any]) -> dict[str, Any]:
    random, figures, done, turn = np.random.default_rng(3), {"tokens": 0, "proposed": 0, "accepted": 0}, 0, 0
    while done < count:
        rows = min(BATCHES[turn % len(BATCHES)], count - done)
        prompts = [random.integers(4, 500, random.integers(1, 30)).tolist() for _ in range(rows)]
        task = task_of(lm, prompts, {**options, "max_new_tokens": 24, "stop_token_ids": None})
        expected = _observed(task)
        draft = KnownText([[token for token, _ in row] for row in expected], 0.7, 500)
        if _observed(replace(task, draft=draft)) != expected:
            raise SystemExit(f"ids or logits: expected those of plain decoding, got others after {done} prompts")
        figures = {name: total + getattr(draft.figures, name) for name, total in figures.items()}
        done, turn = done + rows, turn + 1
    return {"prompts": done, "equal": done, **figures}


def _observed(task: Task) -> list[list[tuple[int, bytes]]]:
    """The tokens of each row, with the bits of the logits that they were chosen from."""
    rows: list[list[tuple[int, bytes]]] = [[] for _ in task.prompts]

    def observe(row: Row, token_id: int, logits: Any) -> None:
        rows[row.index].append((token_id, logits.tobytes()))

    for _ in search.next_token_search(task, observe):
        pass
    return rows


# --- time ----------------------------------------------------------------------------------------


def speed(arguments: argparse.Namespace, rows: int) -> list[dict[str, Any]]:
    config = model_config(arguments.preset, arguments.layers)
    note(f"random weights of {arguments.preset}, {rows} rows")
    sizes = {name: getattr(config, name) for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")}
    backbone = BloomBackbone(
        **sizes, intermediate_dim=config.intermediate_dim, dtype=arguments.dtype, backend="numba", seed=0
    )
    prompts = np.random.default_rng(1).integers(4, config.vocabulary_size, (rows, 32)).tolist()
    options = {"max_new_tokens": arguments.tokens, "stop_token_ids": None}
    plain = task_of(BloomCausalLM(backbone), prompts, options)
    _, truth = _timed(plain)
    drafts = {rate: KnownText(truth, rate, config.vocabulary_size) for rate in arguments.acceptance}
    seconds: dict[float | None, list[float]] = {rate: [] for rate in (None, *drafts)}
    for number in range(1 + arguments.rounds):
        note(f"round {number} of {arguments.rounds}")
        for rate, samples in seconds.items():
            taken, ids = _timed(plain if rate is None else replace(plain, draft=drafts[rate]))
            if ids != truth:
                raise SystemExit("ids: expected those of plain decoding, got others")
            samples += [taken] * (number > 0)
    base = statistics.median(seconds[None])
    results = []
    for rate, draft in drafts.items():
        median = statistics.median(seconds[rate])
        figures = {"tokens_per_pass": round(draft.figures.tokens_per_pass, 3), "ratio": round(base / median, 3)}
        results.append({"rows": rows, "acceptance": rate, "plain_seconds": base, "seconds": median, **figures})
    return results


def _timed(task: Task) -> tuple[float, list[list[int]]]:
    began = perf_counter()
    ids = search.generate(task)
    return perf_counter() - began, ids


def prompt_lookup(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens a pass on texts that repeat their prompt, and on texts that do not."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", backend="numba")
    note("prompt lookup on the embedded preset")
    begin = "Article 1\nAll human beings"
    article = lm.generate(begin, max_new_tokens=tokens, stop_token_ids=None)
    texts = {
        "repeats itself": "Article 1\nArticle 2\nArticle 3\n",
        "stands in the prompt": f"{article}\n{begin}",
        "is new": begin,
    }
    results = []
    for name, prompt in texts.items():
        draft, options = lm.draft("prompt"), {"max_new_tokens": tokens, "stop_token_ids": None}
        samples: dict[str, list[float]] = {"plain": [], "drafted": []}
        expected = lm.generate(prompt, **options)
        for _ in range(1 + rounds):
            for what, more in (("plain", {}), ("drafted", {"draft": draft})):
                began = perf_counter()
                if lm.generate(prompt, **options, **more) != expected:
                    raise SystemExit("text: expected that of plain decoding, got another")
                samples[what].append(perf_counter() - began)
        ratio = statistics.median(samples["plain"][1:]) / statistics.median(samples["drafted"][1:])
        rates = {"tokens_per_pass": draft.figures.tokens_per_pass, "acceptance": draft.figures.acceptance}
        results.append({"text": name, "tokens": tokens, **{k: round(v, 3) for k, v in rates.items()}, "ratio": ratio})
    return results


def show(report: dict[str, Any]) -> None:
    console = Console()
    same = Table("strategy", "dtype", "prompts", "equal ids and logits", "proposed", "accepted", title="The same bits")
    for row in report["equality"]:
        names = ("strategy", "dtype", "prompts", "equal", "proposed", "accepted")
        same.add_row(*(str(row[name]) for name in names))
    speeds = Table(
        "rows", "acceptance", "tokens a pass", "plain, s", "drafted, s", "ratio", title="Speed by acceptance"
    )
    for row in report["speed"]:
        times = (f"{row['plain_seconds']:.2f}", f"{row['seconds']:.2f}", f"{row['ratio']:.2f}")
        speeds.add_row(str(row["rows"]), f"{row['acceptance']:.0%}", f"{row['tokens_per_pass']:.2f}", *times)
    lookup = Table("text", "tokens a pass", "accepted", "ratio", title='draft="prompt"')
    for row in report["prompt_lookup"]:
        lookup.add_row(row["text"], f"{row['tokens_per_pass']:.2f}", f"{row['acceptance']:.0%}", f"{row['ratio']:.2f}")
    for table in (same, speeds, lookup):
        console.print(table)


if __name__ == "__main__":
    main()
