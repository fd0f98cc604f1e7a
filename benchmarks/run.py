"""bloomref's backends and the peers that are installed, on the same random weights, in alternation, on the CPU.

Every participant runs in a process of its own and waits while another runs. Its logits are compared with the reference's
before anything is timed. Beside the figures stand the two floors, measured in the same run: the bandwidth of reading memory
(decoding reads every weight for each token) and the rate of the best matrix product here (a prompt is matrix products).

    prefill   a prompt of that many tokens, logits of its last position
    decode    one token at a time behind a prompt of 32, for that many rows at once

Example: python -m benchmarks.run --dtype bfloat16 --output benchmarks/results/cpu-bfloat16.json
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import participants
from benchmarks.children import Child, serve
from benchmarks.machine import command_line, describe_machine

PROMPT = 32


def main() -> None:
    arguments = _arguments()
    if arguments.serve:
        participants.start(arguments.serve, Path(arguments.folder), arguments.dtype, serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    print(table(report))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bloom_560m_multi", help="whose dimensions to use; the weights are random")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--participants", nargs="+", default=list(participants.ALL), choices=participants.ALL)
    parser.add_argument("--prefill", nargs="*", type=int, default=[128, 512], help="lengths of prompts")
    parser.add_argument("--decode", nargs="*", type=int, default=[1, 4, 16], help="rows at once")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each participant, in turns")
    parser.add_argument("--output", help="write the report to this JSON file")
    parser.add_argument("--serve", choices=participants.ALL, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    machine = describe_machine()
    reference = participants.write_model(arguments.preset, arguments.dtype, folder, max([*arguments.prefill, PROMPT]))
    floors = {"read_gb_per_second": read_bandwidth(), "float32_gflop_per_second": product_rate()}
    present, absent = participants.present(arguments.participants, arguments.dtype)
    children = {}
    try:
        for name in present:
            children[name] = Child(
                "benchmarks.run", "--serve", name, "--folder", str(folder), "--dtype", arguments.dtype
            )
        errors = {name: _error(child, folder, reference) for name, child in children.items()}
        results = _time(children, arguments, participants.weight_bytes(arguments.preset, arguments.dtype))
        threads = {name: child.ask(what="blas")["blas"] for name, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    return {
        "command": command_line(),
        "what": f"{arguments.preset} dimensions, random weights, {arguments.dtype}, 2 threads",
        "machine": machine,
        "floors": floors,
        "threads": threads,
        "absent": absent,
        "logit_error_rms": errors,
        "results": results,
    }


def _error(child: Child, folder: Path, reference: Any) -> float:
    """Root mean square of the last position's logit errors, over that of the logits; a wrong model is not timed."""
    got = np.load(child.ask(what="logits", file=str(folder / "logits.npy"))["file"])
    error = float(np.sqrt(np.mean((got - reference) ** 2) / np.mean(reference**2)))
    if not error < 0.05:
        raise SystemExit(f"logits off by {error:.1%}: nothing is timed")
    return error


def _time(children: dict[str, Child], arguments: argparse.Namespace, weights: int) -> list[dict[str, Any]]:
    jobs = [("prefill", n) for n in arguments.prefill] + [("decode", n) for n in arguments.decode]
    rows = []
    for what, size in jobs:
        able = {name: child for name, child in children.items() if participants.can(name, what, size)}
        for child in able.values():
            child.ask(what=what, size=size)  # warm up
        seconds = {name: [] for name in able}
        for _ in range(arguments.rounds):
            for name, child in able.items():
                seconds[name].append(child.ask(what=what, size=size)["seconds"])
        for name, values in seconds.items():
            median = statistics.median(values)
            row = {
                "what": what,
                "size": size,
                "participant": name,
                "seconds": values,
                "tokens_per_second": size / median,
            }
            if what == "decode":
                row["weights_gb_per_second"] = weights / median / 1e9
            rows.append(row)
    return rows


def read_bandwidth() -> float:
    """GB/s at which two threads read memory: the sum of 1 GiB of float32, the best of five."""
    from concurrent.futures import ThreadPoolExecutor
    from time import perf_counter

    halves = np.ones(1 << 28, np.float32).reshape(2, -1)
    best = float("inf")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            began = perf_counter()
            list(pool.map(np.max, halves))
            best = min(best, perf_counter() - began)
    return halves.nbytes / best / 1e9


def product_rate() -> float:
    """GFLOP/s of NumPy's float32 matrix product, 2048 cubed, the best of five."""
    from time import perf_counter

    a = np.ones((2048, 2048), np.float32)
    best = float("inf")
    for _ in range(5):
        began = perf_counter()
        a @ a
        best = min(best, perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def table(report: dict[str, Any]) -> str:
    """The report for a reader."""
    lines = [report["what"], f"floors: {report['floors']}", f"absent: {report['absent']}"]
    for row in report["results"]:
        rate = f"{row['tokens_per_second']:9.1f} tok/s"
        bandwidth = f"{row['weights_gb_per_second']:6.1f} GB/s of weights" if "weights_gb_per_second" in row else ""
        lines.append(f"{row['what']:8}{row['size']:6}  {row['participant']:14}{rate} {bandwidth}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
