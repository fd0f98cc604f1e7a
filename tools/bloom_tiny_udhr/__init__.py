"""Creation of the embedded preset by `python -m tools.bloom_tiny_udhr.make_tiny_udhr`: corpus, tokenizer, training."""
