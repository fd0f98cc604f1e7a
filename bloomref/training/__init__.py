"""Training: data, batches, the optimiser, the loop, checkpoints. `BloomCausalLM.fit` is the front door."""
