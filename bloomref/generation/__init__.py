"""Choosing tokens from logits: greedy, sampling, beam and contrastive search, stopping, streaming, and scoring of text."""
