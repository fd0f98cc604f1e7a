"""Settings of a training run, in one frozen and validated object. With model and data they determine the result."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from bloomref.validation import Domain, check_bool, check_integer, check_known, check_real


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one training run. Clauses: TRN-17, TRN-19.

    Raises:
        InvalidInput: when a setting is outside its domain, naming it and its expected values.
    """

    steps: int | None = None
    """Number of updates; None: the updates of `epochs`."""
    epochs: float = 1.0
    """Number of passes over the data, used if `steps` is None."""
    batch: int = 8
    """Rows of one forward and backward pass."""
    accumulate: int = 1
    """Forward and backward passes per update. The result is that of one pass over `batch * accumulate` rows."""
    context: int = 256
    """Tokens per row. Longer documents are cut into chunks."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    final_rate: float = 0.0
    """Learning rate at the end of the cosine decay, as a fraction of the peak; 1 keeps the rate constant."""
    weight_decay: float = 0.0
    """Decoupled weight decay: each step subtracts `learning_rate * weight_decay` times the weight.

    Biases and LayerNorm weights do not decay.
    """
    decay_embedding: bool = True
    """Apply weight decay to the embedding."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.999
    """Decay rate of AdamW's second moment."""
    epsilon: float = 1e-8
    """Number added to the denominator of AdamW's update."""
    clip: float | None = 1.0
    """Largest global L2 norm of the gradients; None: no clipping."""
    attention_dropout: float | None = None
    """Dropout rate of the attention probabilities; None: the model's rate."""
    hidden_dropout: float | None = None
    """Dropout rate of the outputs of attention block and MLP; None: the model's rate."""
    seed: int = 0
    """Seed of the order of the data, the held-out documents and dropout."""
    held_out: float = 0.0
    """Share of the documents that is held out for evaluation."""
    eval_every: int = 0
    """Steps between two evaluations; 0: only at the end. The last step is always evaluated."""
    keep_best: bool = False
    """End with the weights of the best evaluation instead of the last step's."""
    completion_only: bool = True
    """Of a record with a prompt, and of a conversation, only the answers count in the loss. A text counts whole."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            if (value := getattr(self, name)) is not None or name != "steps":
                check_integer(name, value, least)
        for name, (expected, domain) in _REALS.items():
            if (value := getattr(self, name)) is not None or name not in _OPTIONAL:
                check_real(name, value, expected, domain)
        for name in ("decay_embedding", "keep_best", "completion_only"):
            check_bool(name, getattr(self, name))

    @classmethod
    def create(cls, **arguments: Any) -> "Settings":
        """Create settings from keyword arguments.

        Raises:
            InvalidInput: when a name is unknown, with a suggestion, or a value is outside its domain.
        """
        check_known(arguments, [field.name for field in fields(cls)], "a setting of training")
        return cls(**arguments)

    def to_dict(self) -> dict[str, Any]:
        """All settings as a JSON-compatible dictionary."""
        return asdict(self)


_INTEGERS = {"steps": 1, "batch": 1, "accumulate": 1, "context": 2, "warmup": 0, "seed": 0, "eval_every": 0}
_OPTIONAL = ("clip", "attention_dropout", "hidden_dropout")
_Range = tuple[str, Domain]
_POSITIVE: _Range = ("a finite number > 0", lambda x: x > 0)
_NOT_NEGATIVE: _Range = ("a finite number >= 0", lambda x: x >= 0)
_BELOW_ONE: _Range = ("a number in [0, 1)", lambda x: 0 <= x < 1)
_REALS: dict[str, _Range] = {
    "epochs": _POSITIVE,
    "learning_rate": _NOT_NEGATIVE,
    "final_rate": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
    "weight_decay": _NOT_NEGATIVE,
    "beta1": _BELOW_ONE,
    "beta2": _BELOW_ONE,
    "epsilon": _NOT_NEGATIVE,
    "clip": _POSITIVE,
    "attention_dropout": _BELOW_ONE,
    "hidden_dropout": _BELOW_ONE,
    "held_out": _BELOW_ONE,
}
