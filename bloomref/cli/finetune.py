"""`bloomref finetune`: train an adapter, or all weights, on text. An interrupted run can be resumed."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli import shared
from bloomref.errors import Unsupported, invalid

if TYPE_CHECKING:
    from bloomref.causal_lm import BloomCausalLM
    from bloomref.training.history import History
    from bloomref.training.settings import Settings

STATE = "training"
# the options of one panel of `--help`
adapter = partial(typer.Option, rich_help_panel="Adapter")
training = partial(typer.Option, rich_help_panel="Training")
evaluation = partial(typer.Option, rich_help_panel="Evaluation")
documents = partial(typer.Option, rich_help_panel="Documents")


def command(
    data: Annotated[list[Path], typer.Argument(help="Files of text, JSON, JSON lines, CSV or TSV.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write: an adapter, or a model with --full.")],
    model: shared.Model = shared.DEFAULT_PRESET,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of an adapter.")] = False,
    lora_rank: Annotated[int | None, adapter(help="Rank of the adapter. Default: 8.")] = None,
    lora_alpha: Annotated[float | None, adapter(help="The adapter is scaled by alpha / rank. Default: 8.")] = None,
    lora_dropout: Annotated[float | None, adapter(help="Dropout of the adapter's input. Default: 0.")] = None,
    target_modules: Annotated[
        list[str] | None,
        adapter(help="Layers to adapt, or all-linear; may be repeated. Default: query_key_value."),
    ] = None,
    modules_to_save: Annotated[
        list[str] | None, adapter(help="Modules to train whole, such as lm_head or ln_f; may be repeated.")
    ] = None,
    train_token: Annotated[
        list[int] | None, adapter(help="Id of a row of the embedding to train; may be repeated.")
    ] = None,
    bias: Annotated[str | None, adapter(help="Biases to train: none, all or lora_only. Default: none.")] = None,
    dora: Annotated[bool, adapter("--dora", help="Train magnitudes, too (DoRA).")] = False,
    steps: Annotated[int | None, training(help="Number of updates. Default: the updates of --epochs.")] = None,
    epochs: Annotated[float, training(help="Passes over the data.")] = 1.0,
    batch: Annotated[int, training(help="Rows of one forward and backward pass.")] = 8,
    context: Annotated[int, training(help="Tokens per row.")] = 256,
    accumulate: Annotated[int, training(help="Forward and backward passes per update.")] = 1,
    lr: Annotated[float, training(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, training(help="Steps of linear warm-up to the peak.")] = 0,
    weight_decay: Annotated[float, training(help="Decoupled weight decay, for matrices only.")] = 0.0,
    clip: Annotated[float | None, training(help="Largest global norm of the gradients.")] = 1.0,
    dropout: Annotated[
        float | None, training(help="Dropout rate of the outputs of attention block and MLP. Default: the model's.")
    ] = None,
    seed: Annotated[int, training(help="Seed of the order of the data, dropout and a new adapter.")] = 0,
    held_out: Annotated[str, evaluation(help="Share of the documents to hold out, or a file of held-out text.")] = "0",
    eval_every: Annotated[int, evaluation(help="Steps between evaluations; 0: only at the end.")] = 0,
    keep_best: Annotated[bool, evaluation("--keep-best", help="Write the weights of the best evaluation.")] = False,
    completion_only: Annotated[
        bool, documents(help="The loss counts answers only, or prompts, too; a text counts whole.")
    ] = True,
    chat_template: Annotated[
        str | None,
        documents(
            help="Writes conversations, and pairs as such: a file, the name of one of the model's templates, or default. "
            "Default: the model's, for conversations only."
        ),
    ] = None,
    separator: Annotated[
        str | None,
        documents(help=r"String between the documents of a text file; \n is a line end. Default: one document."),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: only at the end and on Ctrl-C.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Train a model on DATA and write the result to OUT, with its loss curve.

    Example: bloomref finetune lines.txt --out my-adapter --steps 100 --context 64
    """
    from bloomref.training.settings import Settings

    _check_out(out, resume)
    share, own = _held_out(held_out)
    settings = Settings(
        steps=steps,
        epochs=epochs,
        batch=batch,
        context=context,
        accumulate=accumulate,
        learning_rate=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        hidden_dropout=dropout,
        seed=seed,
        held_out=share,
        eval_every=eval_every,
        keep_best=keep_best,
        completion_only=completion_only,
    )
    lora = _lora(
        full,
        r=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules[0] if target_modules == ["all-linear"] else target_modules,
        modules_to_save=modules_to_save,
        trainable_token_indices=train_token,
        bias=bias,
        use_dora=dora or None,
    )
    language_model = shared.load(model, dtype, revision)
    shared.tokenizer_of(language_model)
    if language_model.adapters:
        hint = f"train the base model, or merge first: `bloomref convert BASE OUT --to hf --adapter {model}`"
        raise invalid("--model", "a model without an adapter", f"the adapter {model} on its base", hint)
    if not full:
        language_model.add_adapter(lora, seed=seed)
    history = _train(
        language_model,
        data,
        settings,
        out / STATE,
        save_every=save_every,
        resume=resume,
        progress=not json,
        facts={"preset": model, "full": full, "lora": lora},
        held_out=own,
        separator=None if separator is None else separator.replace("\\n", "\n"),
        chat_template=_template(language_model, chat_template),
    )
    _write(language_model, history, out, full)
    _report(history, out, full, json)


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise invalid("--out", "a folder", f"the file {out}")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not resume:
        raise invalid("--out", "a new or empty folder", str(out), "--resume continues the run in it")
    if not (out / STATE).is_dir():
        raise invalid("--out", f"a new or empty folder, or one of a run, with a folder {STATE}", str(out))


def _held_out(value: str) -> tuple[float, list[Path] | None]:
    """Parse `--held-out`: returns (share, None), or (0, [file])."""
    try:
        return float(value), None
    except ValueError:
        return 0.0, [Path(value)]


def _template(language_model: "BloomCausalLM", value: str | None) -> str | None:
    """A chat template from the command line: its text, its name among the model's, or the text of a file."""
    own = shared.tokenizer_of(language_model).chat_template
    if value is None or value == "default" or "{" in value or (isinstance(own, dict) and value in own):
        return value
    try:
        return Path(value).read_text("utf-8")
    except (OSError, ValueError) as error:
        expected = "a file of a template, default, or the name of one of the model's templates"
        raise invalid("--chat-template", expected, f"{value}: {error}") from None


def _lora(full: bool, **options: Any) -> dict[str, Any] | None:
    """Options of the adapter that the command line sets, named as in PEFT's LoraConfig; None with `--full`."""
    named = {name: value for name, value in options.items() if value is not None}
    if full and named:
        raise invalid("--full", f"no setting of an adapter, such as {next(iter(named))}", "both")
    return None if full else named


def _train(
    language_model: "BloomCausalLM",
    data: list[Path],
    settings: "Settings",
    folder: Path,
    *,
    save_every: int,
    resume: bool,
    progress: bool,
    facts: dict[str, Any],
    held_out: list[Path] | None,
    separator: str | None,
    chat_template: str | None,
) -> "History":
    from bloomref.training import training_state
    from bloomref.training.fit import Run, fit

    run = Run(folder=folder, save_every=save_every, resume=resume, progress=progress, facts=facts)
    try:
        return fit(
            language_model, data, settings, run, held_out=held_out, separator=separator, chat_template=chat_template
        )
    except KeyboardInterrupt:
        if checkpoint := training_state.latest(folder):
            shared.note(f"saved {checkpoint}; the same command with --resume continues from it")
        raise


def _write(language_model: "BloomCausalLM", history: "History", out: Path, full: bool) -> None:
    """Write the adapter or model, and the history and loss curve next to the checkpoint."""
    from bloomref.training.plot import save_curve

    if full:
        language_model.save_to_preset(out, overwrite=True)
    else:
        language_model.save_adapter(out, overwrite=True)
    history.save(out / STATE / "history.json")
    try:
        save_curve(history, out / STATE / "loss.png")
    except Unsupported as error:  # a missing plot does not fail a long run
        shared.note(str(error))


def _report(history: "History", out: Path, full: bool, json: bool) -> None:
    kind = "model" if full else "adapter"
    last, best = history.steps[-1], history.best
    if json:
        evaluations = [{"step": e.step, "loss": e.loss} for e in history.evaluations]
        report = {"out": str(out), "kind": kind, "steps": last.step, "losses": history.losses}
        shared.print_json(report | {"evaluations": evaluations})
        return
    held_out = "" if best is None else f", best on held-out text {best.loss:.4f} at step {best.step}"
    typer.echo(f"{out}: {kind} after {last.step} steps, loss {history.losses[0]:.4f} to {last.loss:.4f}{held_out}")
