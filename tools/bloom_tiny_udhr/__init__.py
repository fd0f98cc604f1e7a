"""How the embedded preset was made: corpus, tokenizer, training. `python -m tools.bloom_tiny_udhr.make_tiny_udhr --help`."""
