"""Some participants of `python -m benchmarks.gpu --measure`, in one process: each of their figures is a line of JSON.

copy                a copy within the device's memory, whose rate is the bandwidth of the floor
host-copy           a copy of as many bytes as the weights have, from pinned memory of the host
cublas              the matrix products of a prompt, alone
bloomref            `tokens`: steps and the choice of the best token as one CUDA graph, no word from the host between them
bloomref-late       the same, but no kernel starts beside the one before (programmatic dependent launch)
bloomref-steps      `step`: the same graph, but the scores go to the host and a token comes back
bloomref-eager      `step` without graphs: the same kernels, launched one by one
start               loading the weights, and the first token
kernels             each kernel of a step by itself
transformers        `generate` of Hugging Face's model on torch, as it is
transformers-compiled   the same with a static cache and torch.compile, whose steps are CUDA graphs, where that works

Times are medians of `--runs` after two runs that do not count. Weights are random, the same for all, and those of a model of
few layers are compared with the reference before. A participant that fails ends the process; the caller asks the others anew.
"""

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.children import own_stdout
from benchmarks.gpu.checks import SMALL
from benchmarks.gpu.job import Absent, Figures, Job
from benchmarks.gpu.kernels import kernels
from benchmarks.gpu.others import copy, cublas, host_copy, transformers
from benchmarks.gpu.ours import bloomref, start

PARTICIPANTS: dict[str, Callable[[Job, str], Figures]] = {
    "copy": copy,
    "host-copy": host_copy,
    "cublas": cublas,
    "bloomref": bloomref,
    "bloomref-late": bloomref,
    "bloomref-steps": bloomref,
    "bloomref-eager": bloomref,
    "start": start,
    "kernels": kernels,
    "transformers": transformers,
    "transformers-compiled": transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("participants", nargs="+", choices=PARTICIPANTS)
    parser.add_argument("--backend", default=Job.backend)
    parser.add_argument("--preset", default=Job.preset, help=f"whose dimensions to use, or {SMALL}")
    parser.add_argument("--dtype", default=Job.dtype, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", type=int, nargs="+", default=Job.rows)
    parser.add_argument("--prompt", type=int, default=Job.prompt, help="positions before the steps")
    parser.add_argument("--tokens", type=int, default=Job.tokens, help="steps of a timed run")
    parser.add_argument("--long", type=int, default=Job.long, help="positions of the prompt whose reading is timed")
    parser.add_argument("--context", type=int, default=Job.context, help="columns that a step's kernels see")
    parser.add_argument("--runs", type=int, default=Job.runs)
    parser.add_argument("--torch", default=Job.torch, help="where torch computes; cpu for a dry run")
    given = vars(parser.parse_args())
    names, say = given.pop("participants"), own_stdout()
    job = Job(**{**given, "rows": tuple(given["rows"])})
    for name in names:
        answer(job, name, say)


def answer(job: Job, name: str, say: Callable[[dict[str, Any]], None]) -> None:
    """Every figure as soon as it is known; the last line has `done`."""
    try:
        for figures in PARTICIPANTS[name](job, name):
            say({"participant": name, "figures": figures})
    except Absent as error:
        say({"participant": name, "figures": {"absent": str(error)}})
    say({"participant": name, "figures": {"done": True}})


if __name__ == "__main__":
    main()
