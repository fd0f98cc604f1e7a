"""Training: data, batches, optimiser, loop, checkpoints. The public API is `BloomCausalLM.fit`."""
