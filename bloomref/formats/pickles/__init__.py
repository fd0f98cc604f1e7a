"""Pickled weights, read without running them: files of torch.save and of Megatron-DeepSpeed."""
