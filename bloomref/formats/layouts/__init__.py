"""Models in folders: the Hugging Face layout, the Keras layout, and what stands beside the weights."""
