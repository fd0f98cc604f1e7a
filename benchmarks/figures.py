"""From samples to figures: medians, rates, and their shares of the floors that were sampled beside them."""

from statistics import median
from typing import Any

from benchmarks.model import Sizes
from benchmarks.plan import DECODED, Job, Plan

Samples = dict[Job, dict[str, list[dict[str, float]]]]
"""Of each job and participant, one a round: seconds of `prefill` and of a step of `decode`, the floors `read`, `product`."""

FLOORS = {"read": "read_gb_per_second", "product": "product_gflop_per_second"}


def results(plan: Plan, model: Sizes, samples: Samples) -> list[dict[str, Any]]:
    """The rows of the report."""
    rows = []
    for job, answers in samples.items():
        for name, found in answers.items():
            if found and job.rows == 1 and job.context in plan.prefill:
                work = model.prompt_flops(job.context)
                rows.append(_row("prefill", job, name, found, job.context, work, "product"))
            if found and job.decodes:
                # half of the decoded tokens stand between the context and the token in the middle
                work = model.step_bytes(plan.dtype, job.rows, job.context + DECODED // 2)
                rows.append(_row("decode", job, name, found, job.rows, work, "read"))
    return sorted(rows, key=lambda row: (row["what"] != "prefill", row["rows"], row["context"]))


def _row(
    what: str, job: Job, name: str, found: list[dict[str, float]], tokens: int, work: int, floor: str
) -> dict[str, Any]:
    """`work` is in operations or bytes; its rate is compared with the floor of the same moment."""
    seconds = [x[what] for x in found]
    row = {
        "what": what,
        "rows": job.rows,
        "context": job.context,
        "participant": name,
        "seconds": [short(x) for x in seconds],
        "tokens_per_second": short(tokens / median(seconds)),
        FLOORS[floor].removeprefix(f"{floor}_"): short(work / median(seconds) / 1e9),
    }
    shares = [100 * work / x[what] / 1e9 / x[floor] for x in found if floor in x]
    return row | ({f"percent_of_{floor}_floor": short(median(shares))} if shares else {})


def floors(samples: Samples) -> dict[str, Any]:
    """Median and best of all samples of each floor."""
    every = [x for answers in samples.values() for found in answers.values() for x in found]
    rates = {key: [x[key] for x in every if key in x] for key in FLOORS}
    return {
        FLOORS[key]: {"median": short(median(found)), "best": short(max(found))}
        for key, found in rates.items()
        if found
    }


def short(value: float) -> float:
    """Four digits: more are not measured."""
    return float(f"{value:.4g}")
