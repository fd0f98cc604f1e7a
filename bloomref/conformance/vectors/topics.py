"""Topics of the test vectors: one JSON file of specs/vectors each."""

TOPICS = (
    "config",
    "embedding",
    "alibi",
    "attention",
    "mlp",
    "model",
    "cache",
    "generation",
    "gradients",
    "lora",
    "weights",
    "numerics",
)
