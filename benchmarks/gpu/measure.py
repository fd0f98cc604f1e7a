"""Run participants of `python -m benchmarks.gpu --measure` in one process. Each figure is printed as a line of JSON.

copy                    a copy within device memory, whose bandwidth defines the memory floor
host-copy               a copy of as many bytes as the weights have, from pinned host memory
cublas                  the matrix products of a prompt, alone
bloomref                `tokens`: steps and greedy choice as one CUDA graph, without the host
bloomref-late           `tokens` without programmatic dependent launch
bloomref-steps          `step` as a CUDA graph; the host chooses the token from the logits
bloomref-eager          `step` without graphs: the same kernels, launched one by one
start                   loading of the weights, and the first token
kernels                 each kernel of a step separately
transformers            `generate` of Hugging Face's model on torch
transformers-compiled   `generate` with a static cache and torch.compile, whose steps are CUDA graphs

Times are medians of `--runs` runs after two warm-up runs. All participants have the same random weights. The logits of
a model of few layers are compared with the reference first. A participant that fails ends the process; the caller
starts another for the rest.

Example: python -m benchmarks.gpu.measure copy bloomref --preset bloom_560m_multi --rows 1 8
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
    parser.add_argument("--preset", default=Job.preset, help=f"preset whose dimensions are used, or {SMALL}")
    parser.add_argument("--dtype", default=Job.dtype, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", type=int, nargs="+", default=Job.rows)
    parser.add_argument("--prompt", type=int, default=Job.prompt, help="positions before the decoding steps")
    parser.add_argument("--tokens", type=int, default=Job.tokens, help="decoding steps of a timed run")
    parser.add_argument("--long", type=int, default=Job.long, help="positions of the timed prompt")
    parser.add_argument(
        "--context", type=int, default=Job.context, help="cached positions when single kernels are timed"
    )
    parser.add_argument("--runs", type=int, default=Job.runs)
    parser.add_argument("--torch", default=Job.torch, help="torch device; cpu for a dry run")
    settings = vars(parser.parse_args())
    names, say = settings.pop("participants"), own_stdout()
    job = Job(**{**settings, "rows": tuple(settings["rows"])})
    for name in names:
        answer(job, name, say)


def answer(job: Job, name: str, say: Callable[[dict[str, Any]], None]) -> None:
    """Report each figure as soon as it is known. The last line has `done`."""
    try:
        for figures in PARTICIPANTS[name](job, name):
            say({"participant": name, "figures": figures})
    except Absent as error:
        say({"participant": name, "figures": {"absent": str(error)}})
    say({"participant": name, "figures": {"done": True}})


if __name__ == "__main__":
    main()
