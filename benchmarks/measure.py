"""The measurement of `benchmarks.run`: probing, process starts, checks of logits, rounds; and the report."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.field import Field
from benchmarks.figures import Samples, floors, results, short
from benchmarks.floors import Memory
from benchmarks.machine import command_line, describe_machine
from benchmarks.model import model_config, relative_error, sizes, write_model
from benchmarks.participants import PARTICIPANTS
from benchmarks.plan import DECODED, Job, Plan

TOLERANCE = 0.05


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Run the whole measurement in `folder`, which the caller removes; returns the report."""
    machine = describe_machine()  # with the load before the run
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        field = Field(plan, folder, progress)
        try:
            measured = _run(field)
        finally:
            field.close()
    report = {"command": command_line(), "what": plan.describe(), "machine": machine, **measured}
    return report | {"absent": field.absent, "seconds_spent": {what: short(s) for what, s in field.spent.items()}}


def _run(field: Field) -> dict[str, Any]:
    versions = _probe(field)
    config = model_config(field.plan.preset, field.plan.layers)
    expected = _write(field, config)
    field.each("converting", lambda name: field.once("convert", name))
    starts = _starts(field)
    loaded = field.each("loading", lambda name: _load(field, name))
    errors = _check(field, expected)
    samples = _rounds(field)
    ends = field.each("ending", lambda name: field.ask(name, what="state"))
    return {
        "versions": versions,
        "threads": {name: end["threads"] for name, end in ends.items()},
        "logit_error_rms": errors,
        "floors": floors(samples),
        "results": results(field.plan, sizes(config), samples),
        "starts": starts,
        "memory": {name: {"loaded": loaded[name]["loaded"], "end": end["memory"]} for name, end in ends.items()},
    }


# --- before the rounds ---------------------------------------------------------------------------


def _probe(field: Field) -> dict[str, dict[str, str]]:
    """Package versions of the participants that can run; the others leave the field with their reason."""
    answers = field.each("looking for", lambda name: field.once("probe", name))
    for name, answer in answers.items():
        if answer["reason"]:
            field.drop(name, answer["reason"])
    return {name: answers[name]["versions"] for name in field.names}


def _write(field: Field, config: Any) -> Any:
    field.say("writing the model")
    began = perf_counter()
    expected = write_model(config, field.plan.dtype, field.folder, field.plan.longest)
    field.spent["writing the model"] = perf_counter() - began
    return expected


def _starts(field: Field) -> dict[str, Any]:
    """Process starts of each participant: one that fills caches, then `plan.starts` timed ones."""
    timed: dict[str, list[dict[str, Any]]] = {name: [] for name in field.names}
    for number in range(field.plan.starts + 1 if field.plan.starts else 0):
        for name, start in field.each("starting", lambda name: _start(field, name)).items():
            if number:
                timed[name].append(start)
    return {
        name: {
            "first_token_seconds": [short(start["first_token_seconds"]) for start in starts],
            "load_seconds": [short(start["load_seconds"]) for start in starts],
            "loaded": starts[-1]["loaded"],
            "end": starts[-1]["end"],
        }
        for name, starts in timed.items()
        if starts
    }


def _start(field: Field, name: str) -> dict[str, Any]:
    began = perf_counter()
    child = field.child("start", name)
    try:
        child.answer()
        return {"first_token_seconds": perf_counter() - began, **child.answer()}
    finally:
        child.close()


def _load(field: Field, name: str) -> dict[str, Any]:
    field.children[name] = field.child("serve", name)
    return field.ask(name, what="load")


def _check(field: Field, expected: Any) -> dict[str, float]:
    """Relative errors of the logits; a participant whose logits are wrong leaves the field untimed."""
    file = field.folder / "logits.npy"

    def error(name: str) -> float:
        field.ask(name, what="logits", file=str(file))
        return short(relative_error(np.load(file), expected))

    errors = field.each("checking", error)
    for name, value in errors.items():
        if not value < TOLERANCE:
            field.drop(name, f"logits off by {value:.1%} (root mean square): not timed")
    return errors


# --- rounds --------------------------------------------------------------------------------------


def _rounds(field: Field) -> Samples:
    """A round of warm-up, with the same shapes because XLA compiles for each, then the rounds that are timed."""
    plan, memory = field.plan, Memory()
    jobs = plan.jobs()
    samples: Samples = {job: {name: [] for name in field.names} for job in jobs}
    field.progress.update(field.bar, total=(plan.rounds + 1) * len(jobs))
    for number in range(plan.rounds + 1):
        rates = field.each("products", lambda name: field.ask(name, what="product")["rate"])
        facts = {"product": max(rates.values())} if rates else {}
        for job in jobs:
            field.progress.advance(field.bar)
            answers = _turn(field, job, memory, number) if job.in_round(number) else {}
            for name, answer in answers.items() if number else ():
                samples[job][name].append(answer | facts)
    return samples


def _turn(field: Field, job: Job, memory: Memory, number: int) -> dict[str, Any]:
    """Every participant does the job; the rate of reading memory is sampled after each."""
    steps = DECODED if job.decodes else 0

    def act(name: str) -> dict[str, Any] | None:
        if not PARTICIPANTS[name].can(job.rows, job.context):
            return None
        answer = field.ask(name, what="run", rows=job.rows, context=job.context, steps=steps)
        return {**answer, "read": memory.read_rate()}

    return field.each(f"round {number} of {field.plan.rounds}", act)
