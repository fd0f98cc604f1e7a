"""The topics of the vectors: each is one JSON file of specs/vectors."""

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
