"""`python -m benchmarks.gpu --measure`: every participant in turn, what memory allows, and the report."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_checks import config_of
from benchmarks.gpu_measure import PARTICIPANTS
from benchmarks.model import sizes

TOLERANCE = 0.05
ROOT = Path(__file__).parents[1]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each preset: what everybody gave, the floors, and fractions of them."""
    copied = ask("copy", arguments.presets[0], arguments)
    found = []
    for preset in arguments.presets:
        answers = {name: ask(name, preset, arguments) for name in PARTICIPANTS if name != "copy"}
        found.append(judged(preset, answers, copied, arguments))
    return found


def ask(name: str, preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The answer of one process, which gives all its memory back; why there is none, where it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu_measure", name, "--preset", preset]
    command += ["--backend", arguments.backend, "--dtype", arguments.dtype, "--runs", str(arguments.runs)]
    command += ["--tokens", str(arguments.tokens), "--rows", *map(str, arguments.rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"absent": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
    answer: dict[str, Any] = json.loads(lines[-1])
    if not answer.get("logit_error_rms", 0.0) < TOLERANCE:
        return {"absent": f"logits off by {answer['logit_error_rms']:.1%} (root mean square): not timed"}
    return answer


def judged(
    preset: str, answers: dict[str, dict[str, Any]], copied: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Fractions of the floor: bytes that a step must read, over the bandwidth of the copy in the same run."""
    rate, config = copied.get("bytes_per_second"), sizes(config_of(preset))
    middle = 32 + arguments.tokens // 2
    floors = (
        {str(rows): config.step_bytes(arguments.dtype, rows, middle) / rate for rows in arguments.rows} if rate else {}
    )
    fractions = {
        name: {rows: floors[rows] / seconds for rows, seconds in answer["step_seconds"].items()}
        for name, answer in answers.items()
        if floors and "step_seconds" in answer
    }
    return {"preset": preset, "copy": copied, "floor_seconds": floors, "fractions": fractions, "participants": answers}


def show(found: list[dict[str, Any]], console: Console) -> None:
    table = Table("preset", "participant", "rows", "ms a step", "tokens/s", "of the floor", box=None, pad_edge=False)
    absent = []
    for entry in found:
        for name, answer in entry["participants"].items():
            if "absent" in answer:
                absent.append(f"{entry['preset']}, {name}: {answer['absent']}")
            for rows, seconds in answer.get("step_seconds", {}).items():
                fraction = entry["fractions"].get(name, {}).get(rows)
                shown = "" if fraction is None else f"{fraction:.0%}"
                table.add_row(entry["preset"], name, rows, f"{seconds * 1e3:.3f}", f"{int(rows) / seconds:.0f}", shown)
    console.print(table)
    for line in absent:
        console.print(f"absent: {line}")
