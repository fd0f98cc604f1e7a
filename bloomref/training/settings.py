"""Settings of training: one frozen, validated object. Nothing else changes the result."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from bloomref.validation import Domain, check_bool, check_integer, check_known, check_real


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one training run. Clauses: TRN-17, TRN-19.

    Raises:
        InvalidInput: naming the setting, what was expected and what came.
    """

    steps: int | None = None
    """Updates of the weights; None: as many as `epochs` take."""
    epochs: float = 1.0
    """Passes over the data, when `steps` is None."""
    batch: int = 8
    """Rows of one forward and backward pass."""
    accumulate: int = 1
    """Passes whose gradients make one update: the result is that of `batch * accumulate` rows."""
    context: int = 256
    """Tokens of a row; a longer document is cut."""
    learning_rate: float = 1e-3
    """The peak, which the warm-up reaches."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    final_rate: float = 0.0
    """Where the cosine ends, as a share of the peak; 1 keeps the rate constant."""
    weight_decay: float = 0.0
    """Decoupled: a weight loses `learning_rate * weight_decay` of itself at each step. Never biases and norms."""
    decay_embedding: bool = True
    """True: the embedding decays as the other matrices do."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float | None = 1.0
    """Largest norm of all gradients together; None: gradients stay as they are."""
    attention_dropout: float | None = None
    """Dropout rate of the attention probabilities; None: the model's rate."""
    hidden_dropout: float | None = None
    """Dropout rate of the outputs of both blocks; None: the model's rate."""
    seed: int = 0
    """Seed of the order of the data, the held-out part and dropout."""
    held_out: float = 0.0
    """Share of the documents that is kept back for evaluation."""
    eval_every: int = 0
    """Evaluate after every so many steps, and at the end; 0: at the end only."""
    keep_best: bool = False
    """Return the weights of the best evaluation instead of the last."""
    completion_only: bool = False
    """Of prompt and completion, learn the completion only."""

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
        """The settings of these keyword arguments; an unknown name is `InvalidInput`, with a suggestion."""
        check_known(arguments, [field.name for field in fields(cls)], "a setting of training")
        return cls(**arguments)

    def to_dict(self) -> dict[str, Any]:
        """All settings, as plain JSON-compatible values."""
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
