"""From samples to figures: medians, rates, and their percentages of the hardware limits sampled in the same round."""

from statistics import median
from typing import Any

from benchmarks.model import Sizes
from benchmarks.plan import DECODED, Job, Plan

Samples = dict[Job, dict[str, list[dict[str, float]]]]
"""Job -> participant -> one sample per round: seconds of `prefill` and of one `decode` step, and hardware limits,
`read` in GB/s and `product` in GFLOP/s."""

FLOORS = {"read": "read_gb_per_second", "product": "product_gflop_per_second"}


def results(plan: Plan, model: Sizes, samples: Samples) -> list[dict[str, Any]]:
    """The rows of the report."""
    rows = []
    for job, answers in samples.items():
        for name, timed in answers.items():
            if timed and job.rows == 1 and job.context in plan.prefill:
                work = model.prompt_flops(job.context)
                rows.append(_row("prefill", job, name, timed, job.context, work, "product"))
            if timed and job.decodes:
                # an average step reads the prompt and half of the decoded tokens
                work = model.step_bytes(plan.dtype, job.rows, job.context + DECODED // 2)
                rows.append(_row("decode", job, name, timed, job.rows, work, "read"))
    return sorted(rows, key=lambda row: (row["what"] != "prefill", row["rows"], row["context"]))


def _row(
    what: str, job: Job, name: str, timed: list[dict[str, float]], tokens: int, work: int, floor: str
) -> dict[str, Any]:
    """A row of the report. `work` is in operations or bytes; its rate is compared with the limit of the same round."""
    seconds = [x[what] for x in timed]
    row = {
        "what": what,
        "rows": job.rows,
        "context": job.context,
        "participant": name,
        "seconds": [short(x) for x in seconds],
        "tokens_per_second": short(tokens / median(seconds)),
        FLOORS[floor].removeprefix(f"{floor}_"): short(work / median(seconds) / 1e9),
    }
    shares = [100 * work / x[what] / 1e9 / x[floor] for x in timed if floor in x]
    return row | ({f"percent_of_{floor}_floor": short(median(shares))} if shares else {})


def floors(samples: Samples) -> dict[str, Any]:
    """Median and best of all samples of each hardware limit."""
    every = [x for answers in samples.values() for timed in answers.values() for x in timed]
    rates = {key: [x[key] for x in every if key in x] for key in FLOORS}
    return {
        FLOORS[key]: {"median": short(median(values)), "best": short(max(values))}
        for key, values in rates.items()
        if values
    }


def short(value: float) -> float:
    """The value rounded to four digits, the accuracy of the measurements."""
    return float(f"{value:.4g}")
