"""Speed of `BloomCausalLM.generate` and of the engine alone: the difference is the cost of choosing tokens.

The model has a preset's dimensions and random weights. In each round, every line runs in turn: the engine alone
(prefill, then one step for each new token), and `generate` with several options. All do the same passes through the
model, except beam search and contrastive search, which have four times the rows: they are compared with the engine
alone at that many. Figures are medians of the rounds; 560m dimensions take more than five minutes on two
cores without AVX-512; `--layers 4` is for a quick run.

Example:

    python -m benchmarks.generate --dtype bfloat16 --rows 1 16 --json generate.json
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import short
from benchmarks.machine import command_line, describe_machine
from benchmarks.model import PROMPT, model_config

ENGINE, WIDE_ENGINE, GREEDY = "engine alone", "engine alone, 4 times the rows", "greedy"
WIDTH = 4
OPTIONS: dict[str, dict[str, Any]] = {
    GREEDY: {},
    "sampling": {"temperature": 0.8, "seed": 0},
    "sampling, top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 0},
    "sampling, min-p 0.1": {"temperature": 0.8, "min_p": 0.1, "seed": 0},
    "greedy, repetition penalty": {"repetition_penalty": 1.2},
    "greedy, no repeated 3-grams": {"no_repeat_ngram_size": 3},
    "greedy, bias": {"logit_bias": {5: 1.5, 9: -2.0}},
    "beam search, 4 beams": {"num_beams": WIDTH},
    "contrastive search, 4 candidates": {"penalty_alpha": 0.6, "top_k": WIDTH},
}
"""Name of a line -> the options of `generate`."""
WIDE = "beam search, 4 beams", "contrastive search, 4 candidates"
"""Lines with WIDTH times the rows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Arguments of a run; see `benchmarks.generate --help`."""

    preset: str
    layers: int | None
    dtype: str
    backend: str
    rows: list[int]
    tokens: int
    rounds: int


def main() -> None:
    arguments = vars(_arguments())
    output = arguments.pop("output")
    report = measure(Plan(**arguments))
    Console().print(table(report))
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", default="bloom_560m_multi", help="preset whose dimensions are used; the weights are random")
    add("--layers", type=int, help="reduce the model to this number of layers, for a quick run")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--backend", default="numba", help="numpy, numba or another installed backend")
    add("--rows", nargs="+", type=int, default=[1, 16], help="batch sizes")
    add("--tokens", type=int, default=16, help=f"new tokens of each row, after a prompt of {PROMPT}")
    add("--rounds", type=int, default=5, help="timed runs of each line, in turns, after one that is not timed")
    add("--output", "--json", type=Path, help="write the report to this JSON file")
    return parser.parse_args()


def measure(plan: Plan) -> dict[str, Any]:
    """Run every line of every batch size; returns the report."""
    from bloomref import BloomBackbone, BloomCausalLM
    from bloomref.dtypes import floating_dtype
    from bloomref.params import init_params

    machine = describe_machine()  # with the load before the run
    config = model_config(plan.preset, plan.layers)
    params = init_params(config, seed=0).astype(floating_dtype(plan.dtype))
    model = BloomCausalLM(BloomBackbone.from_params(config, params, plan.dtype, backend=plan.backend))
    depth = f" reduced to {plan.layers} layers" if plan.layers else ""
    return {
        "command": command_line(),
        "what": f"{plan.tokens} new tokens, {plan.preset} dimensions{depth}, random weights, {plan.dtype}, "
        f"{plan.backend}",
        "machine": machine,
        "results": [result for rows in plan.rows for result in _results(model, plan, rows)],
    }


def _results(model: Any, plan: Plan, rows: int) -> list[dict[str, Any]]:
    ids = np.random.default_rng(1).integers(4, model.backbone.config.vocabulary_size, (rows, PROMPT))
    engine, wide = model.backbone.engine, np.repeat(ids, WIDTH, axis=0)
    lines: dict[str, Callable[[], object]] = {
        ENGINE: lambda: engine_alone(engine, ids, plan.tokens),
        WIDE_ENGINE: lambda: engine_alone(engine, wide, plan.tokens),
    }
    for name, options in OPTIONS.items():
        lines[name] = lambda options=options: generate(model, ids, plan.tokens, options)
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for number in range(1 + plan.rounds):
        for name, run in lines.items():
            began = perf_counter()
            run()
            if number:
                seconds[name].append(perf_counter() - began)
    medians = {name: median(times) for name, times in seconds.items()}
    return [
        {
            "line": name,
            "rows": rows,
            "seconds": [short(x) for x in times],
            "tokens_per_second": short(rows * plan.tokens / medians[name]),
            "milliseconds_per_step": short(1000 * medians[name] / plan.tokens),
            "percent_of_engine": short(100 * medians[WIDE_ENGINE if name in WIDE else ENGINE] / medians[name]),
            "percent_of_greedy": short(100 * medians[GREEDY] / medians[name]),
        }
        for name, times in seconds.items()
    ]


def engine_alone(engine: Any, ids: Any, new_tokens: int) -> None:
    """The passes of a generation through the model, without its choices: prefill, then `new_tokens - 1` steps."""
    rows, length = ids.shape
    cache = engine.new_cache(rows, length + new_tokens)
    engine.read(cache, 0, ids)
    for position in range(length, length + new_tokens - 1):
        engine.read(cache, position, ids[:, :1])


def generate(model: Any, ids: Any, new_tokens: int, options: dict[str, Any]) -> Any:
    """Exactly `new_tokens` new tokens for every row: stop tokens are disabled."""
    return model.generate(ids.tolist(), stop_token_ids=None, strip_prompt=True, max_new_tokens=new_tokens, **options)


def table(report: dict[str, Any]) -> Table:
    heads = "rows", "", "ms a step", "tokens/s", "of the engine's rate", "of greedy's"
    shown = Table(*heads, title=report["what"], title_justify="left")
    for result in report["results"]:
        is_engine = result["line"] in (ENGINE, WIDE_ENGINE)
        shares = [f"{result[key]:.1f} %" for key in ("percent_of_engine", "percent_of_greedy")]
        figures = f"{result['milliseconds_per_step']:.2f}", f"{result['tokens_per_second']:.1f}"
        shown.add_row(str(result["rows"]), result["line"], *figures, *([] if is_engine else shares))
    return shown


if __name__ == "__main__":
    main()
