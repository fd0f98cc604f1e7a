"""Prefill of one prompt on the CPU, float32, all logits: the NumPy reference and transformers' eager model.

Each participant runs in a separate process and loads the same random weights from the same folder. They run in turns;
one is stopped while the other runs, so that idle threads do not disturb it. Nothing is timed before the logits agree.

With --before, the reference of another checkout of this repository runs in the same turns.

Example: python -m benchmarks.prefill --preset bloom_560m_multi --tokens 512 --output benchmarks/results/prefill.json
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Child, serve
from benchmarks.machine import blas_info, command_line, describe_machine
from benchmarks.model import model_config, write_model

PARTICIPANTS = ("bloomref", "transformers")


def main() -> None:
    arguments = _arguments()
    if arguments.serve:
        answer_as(arguments.serve, Path(arguments.folder), arguments.tokens)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    print(json.dumps(report["results"], indent=2))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="bloom_560m_multi", help="preset whose dimensions are used; the weights are random"
    )
    parser.add_argument("--tokens", type=int, default=512, help="length of the prompt")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each participant, in turns")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="also time the reference of this checkout")
    parser.add_argument("--output", help="write the report to this JSON file")
    parser.add_argument("--serve", choices=PARTICIPANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    machine = describe_machine()
    write_model(model_config(arguments.preset), "float32", folder, arguments.tokens)
    options = ("--folder", str(folder), "--tokens", str(arguments.tokens))
    children = {name: Child("benchmarks.prefill", "--serve", name, *options) for name in PARTICIPANTS}
    if arguments.before:
        checkout = arguments.before.resolve()
        children["bloomref before"] = Child("benchmarks.prefill", "--serve", "bloomref", *options, checkout=checkout)
    try:
        agreement = _check(children, folder)
        for child in children.values():
            child.ask(what="time")  # the first run allocates its memory
        rounds = [
            {name: child.ask(what="time")["seconds"] for name, child in children.items()}
            for _ in range(arguments.rounds)
        ]
        blas = {name: child.ask(what="blas")["blas"] for name, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    return {
        "command": command_line(),
        "what": f"prefill of {arguments.tokens} tokens, all logits, {arguments.preset} dimensions, random weights, "
        "float32",
        "machine": machine,
        "threads": blas,
        "largest_logit_difference": agreement,
        "results": {name: _summary([r[name] for r in rounds], arguments.tokens) for name in children},
        "seconds": rounds,
    }


def _check(children: "dict[str, Child]", folder: Path) -> float:
    """Largest difference of the logits, relative to the largest logit; exits if they differ beyond float32 accuracy."""
    outputs = []
    for child in children.values():
        child.ask(what="logits", file=str(folder / "logits.npy"))
        outputs.append(np.load(folder / "logits.npy"))
    difference = float(max(np.abs(outputs[0] - other).max() for other in outputs[1:]) / np.abs(outputs[0]).max())
    if not difference < 1e-4:
        raise SystemExit(
            f"logits: expected differences below 1e-4 of the largest logit, got {difference:.2e}; nothing is timed"
        )
    return difference


def _summary(seconds: list[float], tokens: int) -> dict[str, float]:
    median = statistics.median(seconds)
    return {
        "median_seconds": round(median, 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "tokens_per_second": round(tokens / median, 1),
    }


def answer_as(name: str, folder: Path, tokens: int) -> None:
    """The participant's side: load, then answer `logits`, `time` and `blas`."""
    from time import perf_counter

    run = _bloomref(folder) if name == "bloomref" else _transformers(folder)
    ids = np.load(folder / "ids.npy")[:1, :tokens]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["what"] == "blas":
            return {"blas": blas_info()}
        began = perf_counter()
        logits = run(ids)
        seconds = perf_counter() - began
        if request["what"] == "logits":
            np.save(request["file"], logits)
        return {"seconds": seconds}

    serve(answer)


def _bloomref(folder: Path) -> Any:
    import bloomref

    model = bloomref.BloomBackbone.from_preset(str(folder / "model"), dtype="float32")
    return lambda ids: model.engine.logits(model({"token_ids": ids}))


def _transformers(folder: Path) -> Any:
    import torch
    from transformers import BloomForCausalLM

    model = BloomForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()

    def run(ids: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), use_cache=False).logits.numpy()

    return run


if __name__ == "__main__":
    main()
