"""CPU benchmark of bloomref's backends and of the installed peers, on the same random weights, in alternation.

Every participant runs in a separate process, which is stopped while another runs; `--python` names the interpreter of a
participant. Nothing is timed before its logits agree with the reference's, for four rows whose last token goes through
the KV cache. In each round, every participant in turn does every job in turn; figures are medians of the rounds.

    start     time from a new process to the first token after a prompt of 32 tokens, with files and compiled code in
              caches; the time of loading within it; peak memory
    prefill   a prompt of this number of tokens, logits of its last position
    decode    one token at a time, for several rows after prompts of 32 tokens, or for one row after a longer prompt

Jobs of at least 1024 tokens run in every second round. The report also has two hardware limits, measured in the same
rounds: the rate of reading memory (decoding reads every weight for each token), and the rate of the fastest matrix
product of any participant. `python -m benchmarks.generate` times what users call, `BloomCausalLM.generate`.

Example, with peers that need separate environments:

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
    add("--preset", default="bloom_560m_multi", help="preset whose dimensions are used; the weights are random")
    add("--layers", type=int, help="reduce the model to this number of layers, for a quick run")
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
    add("--decode", nargs="*", type=int, default=[1, 4, 16], metavar="ROWS", help="batch sizes, up to 16")
    add(
        "--context",
        nargs="*",
        type=int,
        default=[512, 2048],
        metavar="TOKENS",
        help="prompt lengths after which one row decodes",
    )
    add("--rounds", type=int, default=5, help="timed runs of each participant, in turns")
    add("--starts", type=int, default=3, help="timed process starts of each participant, in turns")
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
    return re.sub(r"\[[\s\d.,e+-]+\]", lambda match: " ".join(match[0].split()), text) + "\n"


if __name__ == "__main__":
    main()
