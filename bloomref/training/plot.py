"""Plot of the loss curve."""

from pathlib import Path

from bloomref.errors import Unsupported
from bloomref.formats.staging import staged_file
from bloomref.training.history import History


def save_curve(history: History, path: Path) -> None:
    """Plot the loss of every step and evaluation, and write the plot as a PNG file.

    Raises:
        Unsupported: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        hint = "pip install 'bloomref[plot]'"
        raise Unsupported(f"matplotlib: expected it to be installed, to plot the loss curve; {hint}") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([r.step for r in history.steps], history.losses, linewidth=1, label="training")
    if history.evaluations:
        places, losses = zip(*((e.step, e.loss) for e in history.evaluations), strict=True)
        axes.plot(places, losses, marker="o", label="held out")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with staged_file(path) as stage:
        figure.savefig(stage, dpi=120, format="png")
