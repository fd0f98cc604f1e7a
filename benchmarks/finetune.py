"""LoRA fine-tuning on the CPU, bloomref's Numba backend and peft with transformers: seconds of a step, and memory.

Both load the same files: random weights of a preset's dimensions, and one PEFT adapter on `query_key_value`. Each runs
in a separate process, which is stopped while the other runs; steps alternate. A step is the loss, its gradients by the
adapter, and AdamW. The losses of all steps must agree, which shows that both do the same work. In mixed_bfloat16,
bloomref has that policy, and torch runs under autocast to bfloat16.

Examples:

    python -m benchmarks.finetune --output benchmarks/results/finetune.json
    python -m benchmarks.finetune --dtype mixed_bfloat16 --layers 2 --rounds 1
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.children import Child
from benchmarks.machine import command_line, describe_machine
from benchmarks.model import model_config

PARTICIPANTS = ("bloomref", "peft")
# relative, between the losses of a step: float32 sums in different orders; results in bfloat16
LARGEST_DIFFERENCE = {"float32": 1e-3, "mixed_bfloat16": 2e-2}


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="bloomref-benchmark-") as folder:
        write_files(Path(folder), arguments)
        report = measure(Path(folder), arguments)
    show(report)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work(parser)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="timed steps of each participant, in turns, after one that is not timed")
    add("--output", type=Path, help="write the report to this JSON file")
    return parser.parse_args()


def add_work(parser: argparse.ArgumentParser) -> None:
    """The options that say what a step is."""
    add = parser.add_argument
    add("--preset", default="bloom_560m_multi", help="preset whose dimensions are used; the weights are random")
    add("--dtype", default="float32", choices=tuple(LARGEST_DIFFERENCE), help="dtype policy")
    add("--layers", type=int, help="reduce the model to this number of layers, for a quick run")
    add("--rows", type=int, default=4, help="rows of a batch")
    add("--tokens", type=int, default=128, help="tokens of a row")
    add("--rank", type=int, default=8, help="rank of the adapter")


def write_files(folder: Path, arguments: argparse.Namespace) -> None:
    """Write `model`, `adapter` and `ids.npy` into the folder."""
    import numpy as np

    from bloomref import BloomBackbone, LoraConfig

    config = model_config(arguments.preset, arguments.layers)
    sizes = {name: getattr(config, name) for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")}
    model = BloomBackbone(**sizes, intermediate_dim=config.intermediate_dim, seed=0)
    model.save_to_preset(folder / "model")
    model.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=["query_key_value"]))
    model.save_adapter(folder / "adapter")
    shape = (arguments.rows, arguments.tokens)
    np.save(folder / "ids.npy", np.random.default_rng(1).integers(4, config.vocabulary_size, shape))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    children = {name: Child("benchmarks.finetune_child", name, str(folder), arguments.dtype) for name in PARTICIPANTS}
    try:
        steps: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTICIPANTS}
        for _ in range(1 + arguments.rounds):
            for name, child in children.items():
                steps[name].append(child.ask(what="step"))
        ends = {name: child.ask(what="end") for name, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    losses = {name: [step["loss"] for step in answers] for name, answers in steps.items()}
    difference = max(abs(a - b) / b for a, b in zip(*losses.values(), strict=True))
    allowed = LARGEST_DIFFERENCE[arguments.dtype]
    if difference > allowed:
        raise SystemExit(f"losses: expected the same within {allowed}, got {losses}")
    return {
        "command": command_line(),
        "machine": describe_machine(),
        "work": {key: value for key, value in vars(arguments).items() if key != "output"},
        "largest_difference_of_losses": difference,
        "participants": {name: _figures(steps[name], ends[name], arguments) for name in PARTICIPANTS},
    }


def _figures(steps: list[dict[str, Any]], end: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    seconds = [round(step["seconds"], 3) for step in steps[1:]]
    median = statistics.median(seconds)
    rate = arguments.rows * arguments.tokens / median
    return {
        "seconds": seconds,
        "median": median,
        "processor_seconds": round(statistics.median(step["processor_seconds"] for step in steps[1:]), 3),
        "tokens_per_second": round(rate, 1),
        "losses": [step["loss"] for step in steps],
        **end,
    }


def show(report: dict[str, Any]) -> None:
    """`processor` is the time of all threads, the waiting ones included: on a busy machine it varies less."""
    title = f"LoRA fine-tuning, {report['work']['dtype']}"
    table = Table("", "step, s", "processor, s", "tokens/s", "peak memory, GB", title=title)
    for name, figures in report["participants"].items():
        memory = f"{figures['peak_bytes'] / 1e9:.2f}"
        times = f"{figures['median']:.2f}", f"{figures['processor_seconds']:.2f}"
        table.add_row(name, *times, f"{figures['tokens_per_second']:.0f}", memory)
    Console().print(table)


if __name__ == "__main__":
    main()
