"""bloomref's backends and the peers that are installed, on the same random weights, in alternation, on the CPU.

Every participant runs in a process of its own, in its own interpreter where `--python` names one, and is stopped while
another runs. Its logits are compared with the reference's before anything is timed: four rows, the last token read through
the cache. Each round takes every job in turn and, for each, every participant in turn; figures are medians of the rounds.

    start     a fresh process until the first token behind a prompt of 32, with files and compiled code in caches: the
              time, the part of it that is loading, and the peak of its memory
    prefill   a prompt of that many tokens, logits of its last position
    decode    one token at a time, for so many rows behind prompts of 32, or for one row behind a longer prompt

Jobs of 1024 tokens and more run in every second round. Beside the figures stand two floors, sampled in the same rounds:
the rate of reading memory (decoding reads every weight for each token) and that of the best matrix product of any participant.

Example, with peers that do not fit into one environment:

    python -m benchmarks.run --dtype bfloat16 --python keras=keras-env/bin/python --python openvino=ov-env/bin/python \\
        --output benchmarks/results/cpu-bfloat16.json
"""

import argparse
import json
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import Plan, measure
from benchmarks.participants import PARTICIPANTS
from benchmarks.table import render


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that participants end and files are removed
    with tempfile.TemporaryDirectory(prefix="bloomref-benchmark-") as folder:
        report = measure(_plan(arguments), Path(folder))
    render(report, Console(width=160 if not sys.stdout.isatty() else None))
    if arguments.output:
        arguments.output.write_text(as_json(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", default="bloom_560m_multi", help="whose dimensions to use; the weights are random")
    add("--layers", type=int, help="cut the model to so many layers, to try the command out")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--participants", nargs="+", default=list(PARTICIPANTS), choices=PARTICIPANTS, metavar="NAME")
    add(
        "--python",
        action="append",
        default=[],
        type=_interpreter,
        metavar="NAME=PATH",
        help="a participant's interpreter",
    )
    add("--prefill", nargs="*", type=int, default=[128, 512, 2048], metavar="TOKENS", help="lengths of prompts")
    add("--decode", nargs="*", type=int, default=[1, 4, 16], metavar="ROWS", help="rows at once, up to 16")
    add(
        "--context",
        nargs="*",
        type=int,
        default=[512, 2048],
        metavar="TOKENS",
        help="prompts behind which one row decodes",
    )
    add("--rounds", type=int, default=5, help="timed runs of each participant, in turns")
    add("--starts", type=int, default=3, help="timed starts of each participant, in turns")
    add("--output", type=Path, help="write the report to this JSON file")
    return parser.parse_args()


def _interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in PARTICIPANTS or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTICIPANTS)}, = and an interpreter, got {text}")
    return name, path


def _plan(arguments: argparse.Namespace) -> Plan:
    fields = {key: value for key, value in vars(arguments).items() if key not in ("python", "output")}
    return Plan(**fields, pythons=dict(arguments.python))


def as_json(report: dict[str, Any]) -> str:
    """Indented, with each list of numbers on one line."""
    text = json.dumps(report, indent=1)
    return re.sub(r"\[[\s\d.,e+-]+\]", lambda found: " ".join(found[0].split()), text) + "\n"


if __name__ == "__main__":
    main()
