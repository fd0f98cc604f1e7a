"""Measure false alarms and detections of the rounding budgets: `python -m tools.budget_study --help`.

Cases are drawn independently of the kit's strategies. False alarms are counted on implementations that are taken to be
correct, detections on the instrumented models that make a known mistake.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.cases import MASKS, Case
from bloomref.conformance.implementation import Implementation
from bloomref.conformance.oracle.budgets import Judgement, Tier, budget, judge, tier_of
from bloomref.conformance.subject import Subject
from bloomref.errors import invalid
from bloomref.shapes import Array

HEADS = (1, 2, 3, 5, 6, 7, 8, 9, 12, 16, 24)
HEAD_DIMS = (1, 2, 3, 4, 5, 6, 8, 16)
LONG, LONG_SHARE = 300, 0.02
VERDICTS = ("pass", "inconclusive", "fail")
LIMITS = (3, 4, 5, 6)
INFINITE = 1e9  # substitute for an infinite Z in quantiles
DTYPES = ("float32", "bfloat16", "float16")


def draw(number: int) -> Case:
    """Draw case `number`.

    Most cases have up to 24 positions, some up to 64, a few 300. In a quarter, means are much larger than the spread.
    All kinds of masks occur. The MLP width is 4 D.
    """
    rng = np.random.default_rng([2211, 5100, number])

    def one_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    heads = one_of(*HEADS)
    width = heads * one_of(*HEAD_DIMS)
    config = BloomConfig(
        vocabulary_size=int(rng.integers(3, 98)),
        num_layers=int(rng.integers(0, 5)),
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        layer_norm_epsilon=one_of(1e-5, 1e-5, 1e-6, 1e-3),
        apply_residual_connection_post_layernorm=one_of(True, False),
        tie_word_embeddings=one_of(True, False),
    )
    kind = one_of(*MASKS)
    long = heads <= 8 and rng.random() < LONG_SHARE
    return Case(
        config,
        seed=number,
        batch=2 if kind == "padding row" else 1 if long else int(rng.integers(1, 4)),
        time=LONG if long else int(rng.integers(1, one_of(25, 25, 65))),
        kind=kind,
        gain=one_of(1.0, 0.3, 3.0),
        qk_gain=one_of(1.0, 1.0, 1.0, 6.0, 60.0),
        embedding_std=one_of(1.0, 2e-3),
        offset=one_of(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 30.0, 100.0),
    )


def implementation(name: str) -> Implementation:
    """Return `transformers`, or a backend of bloomref."""
    if name != "transformers":
        return Backend(name)
    from bloomref.conformance.adapters.transformers import Transformers

    return Transformers()


# --- correct implementations -------------------------------------------------------------------------------------


def outputs(subject: Subject, case: Case) -> Mapping[str, Array]:
    """Return all intermediates that the implementation offers, or its logits."""
    if subject.offers(case, "trace"):
        return dict(subject.ask(case, "trace", case.token_ids, case.is_real))
    return {"logits": subject.ask(case, "logits", case.token_ids, case.is_real)}


@dataclass(eq=False)
class Tally:
    """Verdicts on the cases of one implementation."""

    subject: Subject
    verdicts: Counter[str] = field(default_factory=Counter)
    worst: list[float] = field(default_factory=list)
    graded: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, number: int, case: Case) -> None:
        """Judge the implementation on one case."""
        with np.errstate(all="ignore"):
            judgements = judge(case, self.subject.tier, outputs(self.subject, case))
        self.verdicts[overall(judgements)] += 1
        self.graded.append(share(case, self.subject.tier))
        self.worst.append(max((j.z for j in judgements), default=0.0))
        self.failures += [f"case {number}: {j.explanation}" for j in judgements if j.verdict == "fail"][:1]

    def summary(self, name: str) -> dict[str, Any]:
        """Number of cases by verdict, quantiles of the largest Z of each case, and every failure."""
        counts = {verdict: self.verdicts[verdict] for verdict in VERDICTS}
        return {
            "implementation": name,
            "dtype": self.subject.dtype,
            "cases": len(self.worst),
            **counts,
            "positions_judged": round(float(np.mean(self.graded)), 3),
            **quantiles(self.worst),
            "failures": self.failures,
        }


def false_alarms(names: Sequence[str], dtype: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Judge implementations on the same cases, so that the budget of a case is computed once."""
    tallies = {name: Tally(Subject(implementation(name), dtype)) for name in names}
    for number in numbers:
        case = draw(number)
        for name, tally in tallies.items():
            if case.kind != "holes" or name != "transformers":  # transformers counts only real positions, unlike ALI-4
                tally.add(number, case)
    return [tally.summary(name) for name, tally in tallies.items()]


def share(case: Case, tier: Tier) -> float:
    """Share of the real positions whose logits can be judged."""
    return float(budget(case, tier).graded["logits"].sum() / max(1, case.is_real.sum()))


def overall(judgements: Sequence[Judgement]) -> str:
    """Verdict on a case: it fails if one tensor fails, and is otherwise that of the logits."""
    if any(j.verdict == "fail" for j in judgements):
        return "fail"
    return judgements[-1].verdict


def quantiles(z: Sequence[float]) -> dict[str, float | str]:
    """Return median, 99 % quantile and maximum of Z."""
    values = np.quantile(np.minimum(np.array(z or [0.0]), INFINITE), (0.5, 0.99, 1.0))
    shown = ["infinite" if q >= INFINITE else round(float(q), 2) for q in values]
    return dict(zip(("median_z", "p99_z", "largest_z"), shown, strict=True))


# --- mistakes ----------------------------------------------------------------------------------------------------


def detections(dtype: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the share of single cases whose logits alone detect each known mistake, by limit of Z; mistakes run in
    float32."""
    from bloomref.conformance.mistakes import CATALOGUE

    # no case of the study has a LoRA adapter
    catalogue = [mistake for mistake in CATALOGUE if not mistake.is_of_adapters]
    worst: dict[str, list[float]] = {mistake.name: [] for mistake in catalogue}
    for case in map(draw, numbers):
        for mistake in catalogue:
            with np.errstate(all="ignore"):
                results = mistake.model.of(case, dtype=np.float32).run(case.token_ids, case.is_real)
            [judgement] = judge(case, tier_of(dtype), {"logits": results["logits"]})
            worst[mistake.name].append(judgement.z)
    shares = {f"Z > {z}": {k: round(float(np.mean(np.array(v) > z)), 3) for k, v in worst.items()} for z in LIMITS}
    return {"dtype": dtype, "cases": len(numbers), **shares}


# --- the command -------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.budget_study", description=__doc__)
    parser.add_argument("--implementation", nargs="*", default=["numpy"], help="numpy, numba, cupy, transformers")
    parser.add_argument("--dtype", nargs="*", default=list(DTYPES))
    parser.add_argument(
        "--first", type=int, default=400_000, help="number of the first case; the rules were chosen on smaller numbers"
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes; each takes a dtype at a time")
    parser.add_argument("--mistakes", action="store_true", help="measure detections instead of false alarms")
    parser.add_argument("--out", type=Path, help="JSON file; entries of other implementations and dtypes are preserved")
    parser.add_argument("--table", type=Path, help="print this JSON file as tables, without measuring")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, result) of each implementation or mistake run, and dtype. Each dtype is a job.

    Raises:
        InvalidInput: when the number of cases is not positive.
    """
    numbers = range(options.first, options.first + options.cases)
    if options.cases < 1:
        raise invalid("--cases", "a positive number", options.cases)
    with ProcessPoolExecutor(options.jobs) as pool:
        if options.mistakes:
            for result in pool.map(detections, options.dtype, repeat(numbers)):
                yield f"mistakes {result['dtype']}", result
        else:
            for results in pool.map(false_alarms, repeat(options.implementation), options.dtype, repeat(numbers)):
                yield from ((f"{result['implementation']} {result['dtype']}", result) for result in results)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the false alarms as a Markdown table."""
    columns = ("implementation", "dtype", "cases", *VERDICTS, "positions_judged", "median_z", "p99_z", "largest_z")
    rows = [[str(result[c]) for c in columns] for result in results.values() if "implementation" in result]
    lines = [[c.replace("_", " ").replace(" z", " Z") for c in columns], ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def detection_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the detections as a Markdown table."""
    from bloomref.conformance.mistakes import EQUIVALENTS

    equivalents = {mistake.name for mistake in EQUIVALENTS}
    lines = [
        "| dtype | limit | cases that detect a mistake, mean | mistakes that any case detects | equivalents that any case rejects |",
        "|---|---|---|---|---|",
    ]
    for result in (result for key, result in results.items() if key.startswith("mistakes")):
        for limit in LIMITS:
            shares = result[f"Z > {limit}"]
            wrong = [share for name, share in shares.items() if name not in equivalents]
            detected = f"{sum(share > 0 for share in wrong)} of {len(wrong)}"
            equal = equivalents & shares.keys()
            alarms = sum(shares[name] > 0 for name in equal)
            lines.append(
                f"| {result['dtype']} | {limit} | {np.mean(wrong):.1%} | {detected} | {alarms} of {len(equal)} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run the study, and print and store each result, or print the tables of `--table`."""
    options = parse(arguments)
    if options.table:
        results = json.loads(options.table.read_text("utf-8"))
        print(table(results), detection_table(results), sep="\n\n")
        return
    for key, result in measured(options):
        print(key, json.dumps(result), flush=True)
        if options.out:
            results = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
            results[key] = result
            options.out.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
