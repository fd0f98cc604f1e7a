"""Makes the embedded preset: corpus, tokenizer, training. `python -m tools.bloom_tiny_udhr.make_tiny_udhr --help`."""
